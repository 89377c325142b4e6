import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_api.commands.gather import SUCCESS, Gathered, Gathering, gather
from protocol.errors import BY_CODE, ClientLost, ClientNotFound, Code, Unavailable
from protocol.messages import CommandRequest, CommandResponse, failure
from protocol.shares import Shares
from protocol.subjects import ClientAddress

ROOM = 1_000_000


def unlimited(size: int) -> None:
    """Hold any number of bytes."""


COMMAND = CommandRequest(target="f", request_id="r-1", timeout_ms=1000)


def success(client_id: str, result: bytes = b"1") -> CommandResponse:
    return CommandResponse(
        request_id="r-1", status="success", result=msgspec.Raw(result), client_id=client_id, duration_ms=1
    )


def error(client_id: str, code: str) -> CommandResponse:
    return failure("r-1", BY_CODE[code]("why"), client_id)


def ending(client_id: str, end: str) -> CommandResponse:
    return success(client_id) if end == SUCCESS else error(client_id, end)


def told(gathered: Gathered) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(msgspec.json.encode(gathered))
    return found


_ends = st.sampled_from([SUCCESS, *(code.value for code in Code)])


@given(st.dictionaries(st.text(max_size=3), _ends, max_size=6), st.none() | st.integers(1, 8), st.data())
def test_whatever_comes_every_client_has_one_response_and_enough_is_enough(
    ends: dict[str, str], need: int | None, data: st.DataObject
) -> None:
    gathering = Gathering(list(ends), "r-1", need, ROOM, unlimited)
    answered: list[str] = []
    for client_id in data.draw(st.permutations(list(ends))):
        if gathering.enough:
            break
        gathering.take(
            client_id, success(client_id) if ends[client_id] == "success" else error(client_id, ends[client_id])
        )
        answered.append(client_id)
    answer = told(gathering.end())

    assert list(answer["results"]) == list(ends)
    successes = sum(each["status"] == "success" for each in answer["results"].values())
    assert successes <= (len(ends) if need is None else need)
    assert gathering.enough == (need is not None and successes == need)
    codes = {client_id: each.get("error", {}).get("code") for client_id, each in answer["results"].items()}
    expected = {client_id: None if end == SUCCESS else end for client_id, end in ends.items()}
    assert codes == expected | {client_id: "cancelled" for client_id in ends if client_id not in answered}
    assert answer["complete"] == (not {"timeout", "cancelled"} & set(codes.values()))


def test_nobody_asked_is_complete() -> None:
    assert told(Gathering([], "r-1", 1, ROOM, unlimited).end()) == {"results": {}, "complete": True}


def test_result_is_passed_on_to_the_byte() -> None:
    gathering = Gathering(["c1"], "r-1", None, ROOM, unlimited)
    gathering.take("c1", success("c1", b'{ "a" : 1.50 }'))
    assert b'"result":{ "a" : 1.50 }' in msgspec.json.encode(gathering.end())


def test_answers_that_are_too_large_together_are_told_as_such() -> None:
    gathering = Gathering(["c1", "c2", "c3"], "r-1", 2, 1000, unlimited)
    for client_id, size in (("c1", 700), ("c2", 700), ("c3", 10)):
        gathering.take(client_id, success(client_id, b'"' + b"x" * size + b'"'))
    answer = told(gathering.end())
    assert [each["status"] for each in answer["results"].values()] == ["success", "error", "success"]
    assert answer["results"]["c2"]["error"]["code"] == "payload_too_large"
    assert answer["results"]["c2"]["error"]["retryable"] is False
    assert gathering.enough  # by c1 and c3: what is not told does not count


class Clients:
    """Clients that answer when the test says."""

    def __init__(self) -> None:
        self.asked: list[ClientAddress] = []
        self.cancelled: list[str] = []
        self.answers: dict[str, Callable[[], Awaitable[CommandResponse]]] = {}

    async def send(self, address: ClientAddress, command: CommandRequest) -> CommandResponse:
        self.asked.append(address)
        try:
            return await self.answers.get(address.client_id, _never)()
        except asyncio.CancelledError:
            self.cancelled.append(address.client_id)
            raise


async def _never() -> CommandResponse:
    await asyncio.Event().wait()
    raise AssertionError


def at_once(response: CommandResponse) -> Callable[[], Awaitable[CommandResponse]]:
    async def answer() -> CommandResponse:
        await asyncio.sleep(0)  # as long as it takes to ask the others
        return response

    return answer


def raising(exc: Exception) -> Callable[[], Awaitable[CommandResponse]]:
    async def answer() -> CommandResponse:
        raise exc

    return answer


async def test_first_success_cancels_those_that_still_wait() -> None:
    clients = Clients()
    clients.answers = {"c1": raising(Unavailable("away")), "c3": at_once(success("c3"))}
    async with asyncio.timeout(2):
        answer = told(await gather(["c1", "c2", "c3", "c4"], "acme", COMMAND, 1, ROOM, clients.send))
    assert clients.asked == [ClientAddress("acme", each) for each in ("c1", "c2", "c3", "c4")]
    assert sorted(clients.cancelled) == ["c2", "c4"]
    codes = [each.get("error", {}).get("code") for each in answer["results"].values()]
    assert codes == ["unavailable", "cancelled", None, "cancelled"]
    assert answer["complete"] is False


async def test_failures_of_all_kinds_are_data() -> None:
    clients = Clients()
    clients.answers = {
        "c1": raising(ClientLost("gone")),
        "c2": at_once(error("c2", "command_failed")),
        "c3": raising(RuntimeError("the secret of the house")),
        "c4": raising(ClientNotFound()),
    }
    answer = told(await gather(["c1", "c2", "c3", "c4"], "acme", COMMAND, None, ROOM, clients.send))
    assert [each["error"]["code"] for each in answer["results"].values()] == [
        "client_lost",
        "command_failed",
        "internal",
        "client_not_found",
    ]
    assert answer["complete"] is True
    assert "secret" not in json.dumps(answer)


async def test_answers_beyond_the_callers_share_are_told_as_too_large_and_not_as_never_executed() -> None:
    shares = Shares(10_000, "too much")
    shares.ask(("other", "agent"), 100)
    piece = shares.ask(("acme", "agent"), 1)
    clients = Clients()
    clients.answers = {name: at_once(success(name, b'"' + b"x" * 3000 + b'"')) for name in ("c1", "c2", "c3")}
    answer = told(await gather(["c1", "c2", "c3"], "acme", COMMAND, None, ROOM, clients.send, piece.grow))
    errors = [each.get("error") for each in answer["results"].values()]
    assert [error and (error["code"], error["details"], error["retryable"]) for error in errors] == [
        None,
        None,
        ("payload_too_large", {"limit": "agent"}, False),
    ]


async def test_cancelling_cancels_every_command() -> None:
    clients = Clients()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await gather(["c1", "c2", "c3"], "acme", COMMAND, None, ROOM, clients.send)
    assert sorted(clients.cancelled) == ["c1", "c2", "c3"]
