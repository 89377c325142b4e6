"""A streamed answer without a socket: work that the test does, a caller who reads as the test has it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from starlette.types import Receive
from support.wait import until

from agent_api.commands.send import OnClientProgress
from agent_api.http import sse
from agent_api.http.problems import HttpAnswer
from agent_api.routes import command_stream
from agent_api.routes.command_stream import MAX_WAITING, MAX_WAITING_BYTES, stream
from protocol.messages import ProgressMessage

DONE = HttpAnswer(200, b'{"success":true}')
REFUSED = HttpAnswer(404, b'{"code":"client_not_found"}', ((b"x-more", b"1"),))
LOST = HttpAnswer(502, b'{"code":"client_lost"}')


class Caller:
    """An HTTP caller who reads unless `reads` is cleared."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.incoming.put_nowait({"type": "http.request", "body": b"{}", "more_body": False})
        self.heard: OnClientProgress | None = None
        self.answer: asyncio.Future[HttpAnswer | None] = asyncio.get_running_loop().create_future()

    async def send(self, message: Any) -> None:
        self.messages.append(message)
        await self.reads.wait()

    async def receive(self) -> dict[str, Any]:
        return await self.incoming.get()

    async def work(self, receive: Receive, heard: OnClientProgress) -> HttpAnswer | None:
        self.heard = heard
        await receive()
        return await self.answer

    async def tell(self, *numbers: int, data: bytes = b"1") -> None:
        """Tell progress at once, and let the stream act upon it."""
        await self.wakeups()
        assert self.heard is not None
        for number in numbers:
            self.heard("c1", ProgressMessage(request_id="r1", seq=number, progress=number, data=msgspec.Raw(data)))
        await self.wakeups()

    async def wakeups(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def events(self) -> list[str]:
        """What was written, one word or one number an event."""
        blocks = self.body.replace(sse.HEARTBEAT, b"").decode().split("\n\n")
        return [_word(block) for block in blocks if block]


def _word(block: str) -> str:
    name = block.removeprefix("event: ").partition("\n")[0]
    return block.partition('"seq":')[2].partition(",")[0] if name == "progress" else name


@pytest.fixture
async def caller() -> Caller:
    return Caller()


@pytest.fixture
async def streamed(caller: Caller) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.get_running_loop().create_task(stream(caller.work, caller.receive, caller.send))
    yield task
    if not task.done():
        task.cancel()
        await asyncio.wait([task])


async def ended(streamed: asyncio.Task[None]) -> None:
    async with asyncio.timeout(2):
        await streamed


async def test_progress_is_written_as_it_comes_and_the_answer_in_the_end(
    caller: Caller, streamed: asyncio.Task[None]
) -> None:
    await caller.tell(1)
    assert caller.events == ["1"]
    await caller.tell(2, 3)
    caller.answer.set_result(DONE)
    await ended(streamed)
    assert caller.events == ["1", "2", "3", "response"]
    assert caller.body.endswith(b'event: response\ndata: {"success":true}\n\n')
    assert caller.messages[0] == {"type": "http.response.start", "status": 200, "headers": [*sse.HEADERS]}
    assert [message.get("more_body") for message in caller.messages[1:]] == [True] * 4 + [False]


async def test_good_answer_without_progress_is_a_stream_too(caller: Caller, streamed: asyncio.Task[None]) -> None:
    caller.answer.set_result(HttpAnswer(200, DONE.body, ((b"x-more", b"1"),)))
    await ended(streamed)
    assert caller.events == ["response"]
    assert caller.messages[0]["headers"] == [*sse.HEADERS, (b"x-more", b"1")]


async def test_refusal_before_the_stream_begins_is_an_ordinary_answer(
    caller: Caller, streamed: asyncio.Task[None]
) -> None:
    caller.answer.set_result(REFUSED)
    await ended(streamed)
    start, body = caller.messages
    assert (start["status"], body["body"]) == (404, REFUSED.body)
    assert (b"x-more", b"1") in start["headers"]


async def test_error_after_the_stream_has_begun_is_its_response(caller: Caller, streamed: asyncio.Task[None]) -> None:
    await caller.tell(1)
    caller.answer.set_result(LOST)
    await ended(streamed)
    assert caller.events == ["1", "response"]
    assert LOST.body in caller.body


async def test_progress_that_comes_with_an_error_is_told_before_it(
    caller: Caller, streamed: asyncio.Task[None]
) -> None:
    while caller.heard is None:
        await asyncio.sleep(0)
    caller.heard("c1", ProgressMessage(request_id="r1", seq=1, progress=1))
    caller.answer.set_result(LOST)
    await ended(streamed)
    assert caller.events == ["1", "response"]


async def test_slow_reader_misses_progress_but_not_the_newest_nor_the_answer(
    caller: Caller, streamed: asyncio.Task[None]
) -> None:
    await caller.tell(1)
    caller.reads.clear()
    await caller.tell(2)
    await caller.tell(*range(3, 1000))
    assert caller.events == ["1", "2"]
    caller.answer.set_result(DONE)
    caller.reads.set()
    await ended(streamed)
    assert caller.events == ["1", "2", *map(str, range(1000 - MAX_WAITING, 1000)), "response"]


async def test_what_waits_for_a_slow_reader_is_bounded_in_bytes(caller: Caller, streamed: asyncio.Task[None]) -> None:
    await caller.tell(1)
    caller.reads.clear()
    await caller.tell(2)
    await caller.tell(3, 4, data=b"1" * MAX_WAITING_BYTES)
    await caller.tell(5, 6, data=b"1" * (MAX_WAITING_BYTES // 2))
    caller.answer.set_result(DONE)
    caller.reads.set()
    await ended(streamed)
    assert caller.events == ["1", "2", "5", "6", "response"]


async def test_silent_command_is_shown_alive(
    caller: Caller, streamed: asyncio.Task[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_stream, "BEGIN_AFTER_SECONDS", 0.01)
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.01)
    await until(lambda: caller.body.count(sse.HEARTBEAT) >= 3)
    caller.answer.set_result(LOST)
    await ended(streamed)
    assert caller.messages[0]["status"] == 200
    assert caller.events[-1] == "response"


async def test_stream_does_not_begin_before_the_request_is_read(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_stream, "BEGIN_AFTER_SECONDS", 0.01)
    request = caller.incoming.get_nowait()
    streamed = asyncio.get_running_loop().create_task(stream(caller.work, caller.receive, caller.send))
    await asyncio.sleep(0.05)  # the very thing: the request takes longer than the patience after it
    assert caller.messages == []
    caller.incoming.put_nowait(request)
    await until(lambda: caller.messages)
    caller.answer.set_result(DONE)
    await ended(streamed)


async def test_caller_who_has_gone_gets_nothing_more(caller: Caller, streamed: asyncio.Task[None]) -> None:
    await caller.tell(1)
    caller.answer.set_result(None)
    await ended(streamed)
    assert caller.events == ["1"]


async def test_cancelled_request_cancels_the_work(caller: Caller, streamed: asyncio.Task[None]) -> None:
    await caller.tell(1)
    streamed.cancel()
    await asyncio.wait([streamed])
    assert caller.answer.cancelled()
