"""A whole answer in one write says what the server's own way says in two, or is not taken at all."""

import asyncio
import logging
from collections.abc import Callable

import pytest
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from agent_api.http.asgi import write_answer
from agent_api.http.problems import HttpAnswer
from agent_api.http.writing import write_whole

DEFAULTS = [(b"date", b"Tue, 24 Nov 2026 12:00:00 GMT"), (b"x-content-type-options", b"nosniff")]
ANSWER = HttpAnswer(200, b'{"success":true}')


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.answered = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.written.append(bytes(data))

    def count(self) -> None:
        """Note that an answer is complete."""
        self.answered += 1


async def never() -> dict[str, str]:
    """Receive nothing."""
    raise AssertionError("an answer does not read")


def cycle_on(wire: Wire) -> RequestResponseCycle:
    scope = {"type": "http", "method": "POST", "http_version": "1.1", "headers": []}
    return RequestResponseCycle(
        scope=scope,  # type: ignore[arg-type]
        transport=wire,
        flow=FlowControl(wire),
        logger=logging.getLogger("test"),
        access_logger=logging.getLogger("test"),
        access_log=False,
        default_headers=DEFAULTS,
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=True,
        on_response=wire.count,
    )


def scope_of(cycle: RequestResponseCycle) -> Scope:
    return cycle.scope  # type: ignore[return-value]


def state(cycle: RequestResponseCycle) -> tuple[bool, ...]:
    return (
        cycle.response_started,
        cycle.response_complete,
        cycle.message_event.is_set(),
        cycle.waiting_for_100_continue,
        cycle.keep_alive,
    )


def head_and_body(written: list[bytes]) -> tuple[bytes, set[bytes], bytes]:
    head, _, body = b"".join(written).partition(b"\r\n\r\n")
    status, *headers = head.split(b"\r\n")
    return status, set(headers), body


@pytest.mark.parametrize("status", [200, 400, 404, 502])
async def test_one_write_says_what_the_servers_two_say(status: int) -> None:
    one, two = Wire(), Wire()
    whole, pieces = cycle_on(one), cycle_on(two)
    assert write_whole(whole, scope_of(whole), status, ANSWER.body)
    await write_answer(pieces.send, never, HttpAnswer(status, ANSWER.body))  # type: ignore[arg-type]
    assert (len(one.written), len(two.written)) == (1, 2)
    assert head_and_body(one.written) == head_and_body(two.written)
    assert state(whole) == state(pieces)
    assert one.answered == two.answered == 1


def disconnect(cycle: RequestResponseCycle) -> None:
    cycle.disconnected = True


def start(cycle: RequestResponseCycle) -> None:
    cycle.response_started = True


def be_the_last(cycle: RequestResponseCycle) -> None:
    cycle.keep_alive = False


def fill(cycle: RequestResponseCycle) -> None:
    cycle.flow.pause_writing()


@pytest.mark.parametrize("happen", [disconnect, start, be_the_last, fill])
async def test_what_is_out_of_the_ordinary_is_left_to_the_server(
    happen: Callable[[RequestResponseCycle], None],
) -> None:
    wire = Wire()
    cycle = cycle_on(wire)
    happen(cycle)
    assert not write_whole(cycle, scope_of(cycle), 200, b"{}")
    assert (wire.written, wire.answered, cycle.response_complete) == ([], 0, False)


async def test_answer_to_another_request_of_the_connection_is_left_to_the_server() -> None:
    wire = Wire()
    first, second = cycle_on(wire), cycle_on(wire)
    assert not write_whole(second, scope_of(first), 200, b"{}")
    assert wire.written == []
