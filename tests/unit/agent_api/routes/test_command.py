"""The command endpoint without a socket: a caller that the test plays, ASGI messages by hand."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from support.played.known import Known, client
from support.settings import SECRET, agent_token, settings_for

from agent_api.clients.candidates import Candidates
from agent_api.commands.admission import Admission
from agent_api.commands.attempts import Attempts
from agent_api.commands.least_busy import LeastBusy
from agent_api.commands.orders import Order
from agent_api.commands.send import Sender
from agent_api.commands.targets import Targets
from agent_api.http.waiting import Waits
from agent_api.routes.command import CommandEndpoint
from agent_api.settings import ApiSettings
from protocol.errors import ClientLost
from protocol.messages import CommandRequest, CommandResponse
from protocol.runtime.tokens import Verifier
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

    async def send(self, order: Order, attempts: Attempts) -> CommandResponse:
        raise AssertionError


class Bench:
    """The endpoint under test and its surroundings."""

    def __init__(self, tasks: asyncio.TaskGroup, max_commands: int = 10) -> None:
        settings = settings_for(ApiSettings, max_message_bytes=4096)
        self.caller = FakeCaller()
        self.admission = Admission(max_commands)
        self.waits = Waits(tasks)
        candidates, least_busy = Candidates(), LeastBusy()
        self.known = Known(listeners=(candidates.observe, least_busy.observe))
        targets = Targets(self.known, candidates, least_busy, lambda address: 0, self.admission, 4096)
        commands = Sender(self.caller, targets, NoKeys(), passes_tokens_on=settings.auth != "off")
        self.endpoint = CommandEndpoint(settings, Verifier(settings), commands, self.admission, self.waits)

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
    assert bench.admission.commands == 0


async def test_id_that_no_client_can_have_is_refused_with_the_request_id(bench: Bench) -> None:
    exchange = await bench.post(whole(b'{"clientId": "a.b", "command": {"target": "f", "requestId": "r-1"}}'))
    assert (exchange.status, exchange.body["code"], exchange.body["requestId"]) == (404, "client_not_found", "r-1")
    assert bench.admission.commands == 0


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
    assert bench.admission.commands == 0


async def test_caller_who_goes_away_cancels_the_call(bench: Bench) -> None:
    bench.caller.reply = _never
    exchange = whole()
    exchange.incoming.put_nowait({"type": "http.disconnect"})
    async with asyncio.timeout(2):
        await bench.post(exchange)
    assert (bench.caller.cancelled, exchange.sent, bench.admission.commands) == (1, [], 0)


async def test_caller_who_goes_away_in_its_body_calls_nobody(bench: Bench) -> None:
    exchange = Exchange({"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"})
    await bench.post(exchange)
    assert (bench.caller.calls, exchange.sent, bench.admission.commands) == ([], [], 0)


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
    assert bench.admission.commands == 0


async def test_one_command_too_many_is_refused_before_its_body_is_read() -> None:
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, max_commands=2)  # whose bytes are all used up by the first one's body and two commands
        bench.caller.reply = _never
        first = tasks.create_task(bench.post(whole()))
        while not bench.caller.calls:
            await asyncio.sleep(0)
        second = await bench.post(Exchange())
        assert (second.status, second.body["code"], second.body["retryable"]) == (429, "overloaded", True)
        first.cancel()


PART = {"type": "http.request", "body": b" " * 1000, "more_body": True}


async def test_body_that_arrives_is_given_back_for_another_tenant_and_its_connection_closed() -> None:
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, max_commands=4)
        arriving = [Exchange(PART) for _ in range(3)]
        posts = [tasks.create_task(bench.post(exchange)) for exchange in arriving]
        async with asyncio.timeout(2):
            while bench.admission.commands < 3 or any(exchange.incoming.qsize() for exchange in arriving):
                await asyncio.sleep(0)
        assert (await bench.post(whole(), authorization=f"Bearer {agent_token(tenant='acme')}")).status == 200
        arriving[2].incoming.put_nowait({"type": "http.disconnect"})  # it has heard enough
        await posts[2]
        refused = arriving[2]
        assert (refused.status, refused.body["code"], refused.body["details"]) == (
            429,
            "overloaded",
            {"limit": "tenant"},
        )
        assert (b"connection", b"close") in refused.sent[0]["headers"]
        assert bench.admission.commands == 2
        for exchange in arriving[:2]:
            exchange.incoming.put_nowait({"type": "http.request", "body": BODY, "more_body": False})
        await asyncio.gather(*posts)
    assert [exchange.status for exchange in arriving[:2]] == [200, 200]
    assert (bench.admission.commands, len(bench.caller.calls)) == (0, 3)


async def test_request_that_is_cancelled_while_its_body_arrives_is_no_refusal(bench: Bench) -> None:
    exchange = Exchange(PART)
    task = asyncio.get_running_loop().create_task(bench.post(exchange))
    while exchange.incoming.qsize() or not bench.admission.commands:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (exchange.sent, bench.admission.commands) == ([], 0)


async def test_command_that_was_sent_is_not_given_back_and_a_refused_one_leaves_its_connection_open() -> None:
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, max_commands=5)  # of which a lone agent gets three
        bench.caller.reply = _never
        posts = [tasks.create_task(bench.post(whole())) for _ in range(3)]
        async with asyncio.timeout(2):
            while len(bench.caller.calls) < 3:
                await asyncio.sleep(0)
        bench.caller.reply = _echo
        refused = await bench.post(whole())
        assert (refused.status, refused.body["details"]) == (429, {"limit": "agent"})
        assert (b"connection", b"close") not in refused.sent[0]["headers"]
        other = f"Bearer {agent_token(tenant='acme')}"
        assert (await bench.post(whole(), authorization=other)).status == 200
        assert not any(post.done() for post in posts)
        for post in posts:
            post.cancel()


async def test_draining_process_refuses_and_closes(bench: Bench) -> None:
    bench.admission.draining = True
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
    assert bench.admission.commands == 0


async def test_every_command_of_a_scatter_is_taken_in() -> None:
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, max_commands=4)  # of which a lone agent gets nine sixteenths, and the rest of one command
        refused = await bench.post(whole(b'{"clientIds": ["1", "2", "3", "4"], "command": {"target": "f"}}'))
        taken = await bench.post(whole(b'{"clientIds": ["1", "2", "3"], "command": {"target": "f"}}'))
    assert (refused.status, refused.body["code"], taken.status) == (429, "overloaded", 200)
    assert bench.admission.commands == 0


async def test_caller_who_goes_away_cancels_all_of_a_scatter(bench: Bench) -> None:
    bench.caller.reply = _never
    exchange = whole(b'{"clientIds": ["c1", "c2", "c3"], "command": {"target": "f"}}')
    exchange.incoming.put_nowait({"type": "http.disconnect"})
    async with asyncio.timeout(2):
        await bench.post(exchange)
    assert (bench.caller.cancelled, exchange.sent, bench.admission.commands) == (3, [], 0)


async def _echo(command: CommandRequest) -> CommandResponse:
    assert command.request_id is not None
    result = msgspec.Raw(msgspec.json.encode(command.target))
    return CommandResponse(request_id=command.request_id, status="success", result=result, duration_ms=1)


async def _never(command: CommandRequest) -> CommandResponse:
    await asyncio.Event().wait()
    raise AssertionError
