"""The command endpoint without a socket: a caller that the test plays, ASGI messages by hand."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from support.known import Known, client
from support.settings import SECRET, agent_token, settings_for

from agent_api.commands.balance import Balance
from agent_api.commands.bodies import Order
from agent_api.commands.candidates import Candidates
from agent_api.commands.endpoint import CommandEndpoint
from agent_api.commands.intake import Intake
from agent_api.commands.reaching import Reaching
from agent_api.commands.sending import Commands
from agent_api.commands.tries import Tries
from agent_api.http.waiting import Waits
from agent_api.settings import ApiSettings
from protocol.errors import ClientLost
from protocol.messages import CommandRequest, CommandResponse
from protocol.runtime.auth import Verifier
from protocol.subjects import ClientAddress

BODY = b'{"clientId": "c1", "command": {"target": "f", "requestId": "r-1"}}'
Reply = Callable[[CommandRequest], Awaitable[CommandResponse]]


class FakeCaller:
    """Answers commands as the test says, and remembers them."""

    def __init__(self) -> None:
        self.calls: list[tuple[ClientAddress, CommandRequest, str | None]] = []
        self.reply: Reply = _echo
        self.cancelled = 0

    async def call(
        self, address: ClientAddress, command: CommandRequest, token: str | None, on_progress: object = None
    ) -> CommandResponse:
        self.calls.append((address, command, token))
        try:
            return await self.reply(command)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class Exchange:
    """One HTTP request and what was answered."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.sent: list[dict[str, Any]] = []
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for message in messages:
            self.incoming.put_nowait(message)

    async def receive(self) -> dict[str, Any]:
        return await self.incoming.get()

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.sent[1]["body"])
        return answer


class NoKeys:
    """What sends orders with a key, of which there are none here."""

    async def send(self, order: Order, tries: Tries) -> CommandResponse:
        raise AssertionError


class Bench:
    """The endpoint under test and its surroundings."""

    def __init__(self, tasks: asyncio.TaskGroup, max_commands: int = 10) -> None:
        settings = settings_for(ApiSettings, max_message_bytes=4096)
        self.caller = FakeCaller()
        self.intake = Intake(max_commands)
        self.waits = Waits(tasks)
        candidates, balance = Candidates(), Balance()
        self.known = Known(listeners=(candidates.observe, balance.observe))
        reaching = Reaching(self.known, candidates, balance, lambda address: 0, self.intake, 4096)
        commands = Commands(self.caller, reaching, NoKeys(), passes_tokens_on=settings.auth != "off")
        self.endpoint = CommandEndpoint(settings, Verifier(settings), commands, self.intake, self.waits)

    async def post(self, exchange: Exchange, **headers: str) -> Exchange:
        known = {"authorization": f"Bearer {agent_token()}", "content-type": "application/json", **headers}
        scope = {"headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in known.items()]}
        await self.endpoint(scope, exchange.receive, exchange.send)
        return exchange


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    watchers = asyncio.TaskGroup()
    async with watchers:
        yield Bench(watchers)


def whole(body: bytes = BODY) -> Exchange:
    return Exchange({"type": "http.request", "body": body, "more_body": False})


async def test_command_goes_to_the_caller_with_the_token(bench: Bench) -> None:
    exchange = await bench.post(whole())
    assert exchange.status == 200
    assert exchange.body["result"] == "f"
    (address, command, token) = bench.caller.calls[0]
    assert (address, command.target, command.timeout_ms) == (ClientAddress("default", "c1"), "f", 30_000)
    assert token == agent_token()
    assert bench.intake.commands == 0


async def test_id_that_no_client_can_have_is_refused_with_the_request_id(bench: Bench) -> None:
    exchange = await bench.post(whole(b'{"clientId": "a.b", "command": {"target": "f", "requestId": "r-1"}}'))
    assert (exchange.status, exchange.body["code"], exchange.body["requestId"]) == (404, "client_not_found", "r-1")
    assert bench.intake.commands == 0


async def test_error_without_an_answer_carries_the_request_id(bench: Bench) -> None:
    async def lose(command: CommandRequest) -> CommandResponse:
        raise ClientLost("it is gone")

    bench.caller.reply = lose
    exchange = await bench.post(whole())
    assert exchange.status == 502
    assert exchange.body == {
        "error": "Client lost",
        "code": "client_lost",
        "message": "it is gone",
        "retryable": False,
        "requestId": "r-1",
    }


async def test_unexpected_exception_is_told_to_the_log_alone(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(command: CommandRequest) -> CommandResponse:
        raise RuntimeError("the secret of the house")

    bench.caller.reply = fail
    with caplog.at_level(logging.ERROR):
        exchange = await bench.post(whole())
    assert (exchange.status, exchange.body["code"]) == (500, "internal")
    assert b"secret" not in exchange.sent[1]["body"]
    assert "the secret of the house" in caplog.text
    assert SECRET not in caplog.text
    assert bench.intake.commands == 0


async def test_caller_who_goes_away_cancels_the_call(bench: Bench) -> None:
    bench.caller.reply = _never
    exchange = whole()
    exchange.incoming.put_nowait({"type": "http.disconnect"})
    async with asyncio.timeout(2):
        await bench.post(exchange)
    assert (bench.caller.cancelled, exchange.sent, bench.intake.commands) == (1, [], 0)


async def test_caller_who_goes_away_in_its_body_calls_nobody(bench: Bench) -> None:
    exchange = Exchange({"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"})
    await bench.post(exchange)
    assert (bench.caller.calls, exchange.sent, bench.intake.commands) == ([], [], 0)


async def test_giving_up_cancels_what_is_under_way_and_says_so(bench: Bench) -> None:
    bench.caller.reply = _never
    exchange = whole()
    async with asyncio.timeout(2), asyncio.TaskGroup() as tasks:
        tasks.create_task(bench.post(exchange))
        while not bench.caller.calls:
            await asyncio.sleep(0)
        bench.waits.give_up()
    assert (exchange.status, exchange.body["code"], bench.caller.cancelled) == (499, "cancelled", 1)


async def test_cancelled_request_is_no_caller_gone(bench: Bench) -> None:
    bench.caller.reply = _never
    task = asyncio.get_running_loop().create_task(bench.post(whole()))
    while not bench.caller.calls:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.intake.commands == 0


async def test_one_command_too_many_is_refused_before_its_body_is_read() -> None:
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, max_commands=1)
        bench.caller.reply = _never
        first = tasks.create_task(bench.post(whole()))
        while not bench.caller.calls:
            await asyncio.sleep(0)
        second = await bench.post(Exchange())
        assert (second.status, second.body["code"], second.body["retryable"]) == (429, "overloaded", True)
        first.cancel()


async def test_draining_process_refuses_and_closes(bench: Bench) -> None:
    bench.intake.draining = True
    exchange = Exchange({"type": "http.disconnect"})
    await bench.post(exchange)
    assert (exchange.status, exchange.body["code"]) == (503, "unavailable")
    assert (b"connection", b"close") in exchange.sent[0]["headers"]


async def test_announced_length_over_the_limit_is_refused_before_the_body_is_read(bench: Bench) -> None:
    exchange = await bench.post(Exchange({"type": "http.disconnect"}), content_length="4097")
    assert (exchange.status, exchange.body["code"]) == (413, "payload_too_large")


async def test_body_at_the_limit_is_read(bench: Bench) -> None:
    exchange = await bench.post(whole(BODY.ljust(4096)))
    assert exchange.status == 200


async def test_without_a_client_the_list_must_be_there(bench: Bench) -> None:
    bench.known.filled.clear()
    exchange = await bench.post(whole(b'{"command": {"target": "f"}}'))
    assert (exchange.status, exchange.body["code"]) == (503, "unavailable")


async def test_least_busy_client_is_found(bench: Bench) -> None:
    bench.known.put(client("c1", "f"))
    exchange = await bench.post(whole(b'{"any": true, "command": {"target": "f"}}'))
    assert (exchange.status, exchange.body["clientId"], exchange.body["result"]) == (200, "c1", "f")


async def test_scatter_answers_by_client(bench: Bench) -> None:
    exchange = await bench.post(whole(b'{"clientIds": ["c1", "a.b"], "command": {"target": "f", "requestId": "r-1"}}'))
    assert exchange.status == 200
    assert exchange.body == {
        "results": {
            "c1": {"requestId": "r-1", "status": "success", "result": "f", "clientId": "c1", "durationMs": 1},
            "a.b": {
                "requestId": "r-1",
                "status": "error",
                "error": {
                    "code": "client_not_found",
                    "message": "no connected client with this id",
                    "retryable": False,
                },
                "clientId": "a.b",
                "durationMs": 0,
            },
        },
        "complete": True,
    }
    assert bench.intake.commands == 0


async def test_every_command_of_a_scatter_is_taken_in() -> None:
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, max_commands=3)
        refused = await bench.post(whole(b'{"clientIds": ["1", "2", "3", "4"], "command": {"target": "f"}}'))
        taken = await bench.post(whole(b'{"clientIds": ["1", "2", "3"], "command": {"target": "f"}}'))
    assert (refused.status, refused.body["code"], taken.status) == (429, "overloaded", 200)
    assert bench.intake.commands == 0


async def test_caller_who_goes_away_cancels_all_of_a_scatter(bench: Bench) -> None:
    bench.caller.reply = _never
    exchange = whole(b'{"clientIds": ["c1", "c2", "c3"], "command": {"target": "f"}}')
    exchange.incoming.put_nowait({"type": "http.disconnect"})
    async with asyncio.timeout(2):
        await bench.post(exchange)
    assert (bench.caller.cancelled, exchange.sent, bench.intake.commands) == (3, [], 0)


async def _echo(command: CommandRequest) -> CommandResponse:
    assert command.request_id is not None
    result = msgspec.Raw(msgspec.json.encode(command.target))
    return CommandResponse(request_id=command.request_id, status="success", result=result, duration_ms=1)


async def _never(command: CommandRequest) -> CommandResponse:
    await asyncio.Event().wait()
    raise AssertionError
