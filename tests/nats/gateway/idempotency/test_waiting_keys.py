"""What happens to a command while its key is being reserved; the gateway runs inside the test, which holds that up."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.aio.msg import Msg
from support.nats.nats_server import NatsServer
from support.nats.stores import make_store
from support.played.app import App, Handler, application
from support.played.running_gateway import running_gateway
from support.processes.gateways import Agent, agent
from support.settings import agent_token, settings_for
from support.wait import until

from protocol import codec, subjects
from protocol.errors import Internal, Unavailable
from protocol.idempotency import IdempotencyEntry
from protocol.reports import ReportAck
from protocol.runtime.commands.idempotency_store import IdempotencyStore
from protocol.runtime.nats.connection import connect
from protocol.runtime.streams.stores import keys_of
from registry.settings import RegistrySettings

Body = dict[str, Any]
UNREADABLE = Internal("the acknowledgement is none")
LOST = Unavailable("the acknowledgement is lost")


class Gate:
    """Stands before or behind the write of a reservation."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.reached = 0
        self.error: Exception | None = None
        self.written: list[IdempotencyEntry] = []

    async def write(
        self, store: IdempotencyStore, key: str, entry: IdempotencyEntry, expected: int = 0, **more: Any
    ) -> int:
        self.reached += 1
        await self.open.wait()
        revision = await _write(store, key, entry, expected, **more)
        self.written.append(entry)
        if self.error is not None:
            raise self.error
        return revision


_write = IdempotencyStore.write


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()

    async def write(store: IdempotencyStore, key: str, entry: IdempotencyEntry, expected: int = 0, **more: Any) -> int:
        return await gate.write(store, key, entry, expected, **more)

    monkeypatch.setattr(IdempotencyStore, "write", write)
    return gate


@pytest.fixture
async def gateway(private_nats: NatsServer, gate: Gate) -> AsyncIterator[str]:
    async with connect(settings_for(RegistrySettings, private_nats.url), "registry", "registry") as registry:
        await make_store(registry.client, keys_of("default"))
        await registry.subscribe(subjects.REGISTRY_REPORT, acknowledge)
        async with running_gateway(private_nats.url) as url:
            yield url
            gate.open.set()


@pytest.fixture
async def app(gateway: str) -> AsyncIterator[App]:
    handlers: dict[str, Handler] = {"echo": same, "guarded": same}
    offered = ["echo", {"name": "guarded", "permissions": ["todo"]}]
    async with application(gateway, handlers, capabilities=offered) as connected:
        yield connected


@pytest.fixture
async def caller(private_nats: NatsServer) -> AsyncIterator[Agent]:
    async with agent(private_nats.url) as connected:
        yield connected


async def acknowledge(msg: Msg) -> None:
    """Be the registry, which a gateway tells that it leaves."""
    await msg.respond(codec.encode(ReportAck(json.loads(msg.data)["number"])))


def same(parameters: Body) -> Body:
    return parameters


def keyed(caller: Agent, app: App, request_id: str, **more: Any) -> Any:
    return caller.call(app.client_id, "echo", idempotencyKey="k", requestId=request_id, **more)


async def executed(app: App) -> int:
    return len(await app.commands())


async def test_probe_finds_a_command_in_flight_while_its_key_is_claimed(gate: Gate, app: App, caller: Agent) -> None:
    gate.open.clear()
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(keyed(caller, app, "r1"))
        await until(lambda: gate.reached)
        probe = {"op": "probe", "requestIds": ["r1", "r2"]}
        assert await caller.ask(app.client_id, probe) == {"inFlight": ["r1"], "outcomes": [], "unknown": ["r2"]}
        assert await executed(app) == 0
        gate.open.set()
    assert call.result()["status"] == "success"


async def test_command_cancelled_while_its_key_is_claimed_is_never_sent(gate: Gate, app: App, caller: Agent) -> None:
    gate.open.clear()
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(keyed(caller, app, "r1"))
        await until(lambda: gate.reached)
        assert await caller.ask(app.client_id, {"op": "cancel", "requestId": "r1"}) == {"cancelled": True}
        assert (await call)["error"]["code"] == "cancelled"
        gate.open.set()
    await until(lambda: gate.written)
    assert await executed(app) == 0
    assert "replayed" not in await keyed(caller, app, "r2")
    assert await executed(app) == 1


async def test_command_whose_time_is_up_while_its_key_is_claimed_is_never_sent(
    gate: Gate, app: App, caller: Agent
) -> None:
    gate.open.clear()
    answer = await keyed(caller, app, "r1", timeoutMs=100)
    assert answer["error"]["code"] == "timeout"
    assert "was not executed" in answer["error"]["message"]
    gate.open.set()
    assert "replayed" not in await keyed(caller, app, "r2")
    assert await executed(app) == 1


async def test_twin_takes_over_from_one_who_left_while_the_key_was_claimed(gate: Gate, app: App, caller: Agent) -> None:
    gate.open.clear()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(keyed(caller, app, "r1", timeoutMs=100))
        await until(lambda: gate.reached)
        twin = tasks.create_task(keyed(caller, app, "r2", timeoutMs=5000))
        assert (await first)["error"]["code"] == "timeout"
        gate.open.set()
    assert (twin.result()["status"], "replayed" in twin.result()) == ("success", False)
    (command,) = app.all_received(type="command")
    assert 4000 < command["timeoutMs"] <= 5000


async def test_client_that_goes_while_the_key_is_claimed_has_not_executed_it(
    gate: Gate, gateway: str, caller: Agent
) -> None:
    gate.open.clear()
    async with application(gateway, {"echo": lambda parameters: parameters}) as leaving, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(keyed(caller, leaving, "r1"))
        await until(lambda: gate.reached)
        await leaving.socket.close()
        await until(lambda: leaving.close_code)
        gate.open.set()
    assert call.result()["error"]["code"] == "client_not_found"
    async with application(gateway, {"echo": lambda parameters: parameters}) as heir:
        assert (await keyed(caller, heir, "r2"))["status"] == "success"


def guarded(caller: Agent, app: App, request_id: str, *permissions: str) -> Any:
    token = agent_token(permissions=permissions)
    return caller.call(app.client_id, "guarded", token=token, idempotencyKey="k", requestId=request_id)


async def test_twin_that_has_the_permission_is_executed_where_the_first_one_lacks_it(
    gate: Gate, app: App, caller: Agent
) -> None:
    gate.open.clear()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(guarded(caller, app, "r1"))
        await until(lambda: gate.reached)
        twins = [tasks.create_task(guarded(caller, app, name, "todo")) for name in ("r2", "r3")]
        await until(lambda: in_flight(caller, app, "r2", "r3"))
        gate.open.set()
    assert first.result()["error"]["code"] == "permission_denied"
    assert [twin.result()["status"] for twin in twins] == ["success"] * 2
    assert [twin.result().get("replayed") for twin in twins] == [None, True]
    assert (await guarded(caller, app, "r4", "todo"))["replayed"] is True
    assert await executed(app) == 1


async def test_twin_that_comes_while_the_key_of_one_without_permission_is_freed_is_executed(
    app: App, caller: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, removing, may_remove = IdempotencyStore.remove, asyncio.Event(), asyncio.Event()

    async def slow_remove(store: IdempotencyStore, key: str, expected: int) -> None:
        removing.set()
        await may_remove.wait()
        await remove(store, key, expected)

    monkeypatch.setattr(IdempotencyStore, "remove", slow_remove)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(guarded(caller, app, "r1"))
        await removing.wait()
        assert (await guarded(caller, app, "r2", "todo"))["status"] == "success"
        may_remove.set()
    assert first.result()["error"]["code"] == "permission_denied"
    assert (await guarded(caller, app, "r3", "todo"))["replayed"] is True
    assert await executed(app) == 1


async def in_flight(caller: Agent, app: App, *request_ids: str) -> bool:
    probe = {"op": "probe", "requestIds": request_ids}
    return len((await caller.ask(app.client_id, probe))["inFlight"]) == len(request_ids)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (LOST, "unavailable", True),
        (UNREADABLE, "internal", False),
        (RuntimeError("a fault of ours"), "internal", False),
    ],
)
async def test_claim_whose_writing_failed_somehow_is_not_executed_and_may_be_sent_again(
    gate: Gate, app: App, caller: Agent, error: Exception, code: str, retryable: bool
) -> None:
    gate.error = error
    answer = await keyed(caller, app, "r1")
    assert (answer["error"]["code"], answer["error"]["retryable"]) == (code, retryable)
    assert (await executed(app), len(gate.written)) == (0, 1)
    gate.error = None
    assert "replayed" not in await keyed(caller, app, "r2")
    assert (await keyed(caller, app, "r3"))["replayed"] is True
    assert await executed(app) == 1


@pytest.mark.parametrize("error", [LOST, UNREADABLE])
async def test_outcome_whose_acknowledgement_is_lost_or_unreadable_is_written_once(
    gate: Gate, app: App, caller: Agent, error: Exception
) -> None:
    app.handlers["echo"] = lambda parameters: setattr(gate, "error", error)
    assert (await keyed(caller, app, "r1"))["status"] == "success"
    await until(lambda: len(gate.written) == 2)
    gate.error = None
    counted = json.loads((await caller.nats.request("$SRV.STATS.agentbridge-gateway", b"", timeout=5)).data)
    (data,) = [each["data"] for each in counted["endpoints"] if each["name"] == "ping"]
    assert (data["keyedCommands"], data["outcomesNotRecorded"]) == (1, 0)
    assert (await keyed(caller, app, "r2"))["replayed"] is True
    assert await executed(app) == 1


async def test_key_whose_removal_is_answered_by_a_stranger_is_freed_a_moment_later(
    app: App, caller: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, removed = IdempotencyStore.remove, list[str]()

    async def misunderstood(store: IdempotencyStore, key: str, expected: int) -> None:
        removed.append(key)
        if len(removed) == 1:
            raise UNREADABLE
        await remove(store, key, expected)

    monkeypatch.setattr(IdempotencyStore, "remove", misunderstood)
    refused = {"target": "nothing", "idempotencyKey": "k"}
    assert await caller.refused(app.client_id, refused) == "unknown_capability"
    assert (await keyed(caller, app, "r2"))["status"] == "success"
    assert await executed(app) == 1
