"""What holders of a NATS password can do to a gateway without a valid token, and what they cannot."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import nats.errors
import pytest
from support.load.flood import flood
from support.nats.audit import statistics
from support.played.app import App, Handler, application
from support.processes.child import Process
from support.processes.gateways import Agent
from support.settings import agent_token, app_token, bearer
from support.wait import subscribed, until

from protocol import subjects

FLOOD_SECONDS = 3.0
PER_SECOND = 2_000  # which even a busy machine drops without a queue
HANDLERS: dict[str, Handler] = {"echo": lambda parameters: parameters}


@pytest.fixture
async def app(gateway: Process) -> AsyncIterator[App]:
    async with application(gateway.url, HANDLERS, capabilities=["echo"]) as connected:
        yield connected


@pytest.fixture
async def neighbour(gateway: Process) -> AsyncIterator[App]:
    """The application of another tenant at the same gateway."""
    token = app_token("ann", tenant="acme")
    async with application(gateway.url, HANDLERS, token=token, capabilities=["echo"]) as connected:
        yield connected


async def test_flood_without_a_good_token_reaches_nobody_else(
    gateway: Process, shared_nats_url: str, caller: Agent, app: App, neighbour: App
) -> None:
    """Callers are served meanwhile, with new tokens, too: another tenant's, and those of this client."""
    lines_before = len(gateway.log.splitlines())
    served: list[str] = []
    port = urlsplit(shared_nats_url).port
    assert port is not None
    async with asyncio.TaskGroup() as tasks:
        flooding = tasks.create_task(flood(port, subjects.command("default", app.client_id), FLOOD_SECONDS, PER_SECOND))
        while not flooding.done():
            of_neighbour = agent_token(f"agent-{len(served) // 20}", tenant="acme")
            answer = await caller.call(neighbour.client_id, "echo", token=of_neighbour, tenant="acme")
            served.append(answer["status"])
            new = agent_token(f"new-{len(served)}")
            served.append((await caller.call(app.client_id, "echo", token=new))["status"])
    assert set(served) == {"success"}
    lines = gateway.log.splitlines()[lines_before:]
    assert len(lines) <= 5 * FLOOD_SECONDS, f"{len(lines)} lines, beginning with {lines[:3]}"
    counted = await statistics(shared_nats_url, "agentbridge-gateway")
    assert flooding.result() * 0.9 < counted["messagesDropped"] < flooding.result()


async def test_message_without_a_token_is_still_told_so(caller: Agent, app: App) -> None:
    assert await caller.refused(app.client_id, {"target": "echo"}, token=None) == "unauthenticated"


async def test_record_claims_nothing_that_a_caller_may_choose(caller: Agent, app: App) -> None:
    """Any NATS user may name `_INBOX.api.…` as its reply, so the reply says nothing of where a command came from."""
    nats = caller.nats
    records = await nats.subscribe(subjects.audit("default", app.client_id, "*"))
    replies = await nats.subscribe("_INBOX.api.forged")
    await subscribed(nats)
    body = json.dumps({"target": "echo", "parameters": {}, "requestId": "mine"}).encode()
    subject = subjects.command("default", app.client_id)
    await nats.publish(subject, body, "_INBOX.api.forged", bearer(agent_token()))
    await replies.next_msg(5)
    record: dict[str, Any] = json.loads((await records.next_msg(5)).data)
    assert (record["requestId"], record["outcome"], record["by"]) == ("mine", "success", "gateway")
    assert "agent_api" not in record.values()
    assert "via" not in record


async def test_flood_faster_than_it_can_be_dropped_costs_its_own_tenant_alone(
    gateway: Process, shared_nats_url: str, caller: Agent, app: App, neighbour: App
) -> None:
    """The subject of the flooded client is left, and taken up again when the flood is over."""
    port = urlsplit(shared_nats_url).port
    assert port is not None
    served: list[str] = []
    async with asyncio.TaskGroup() as tasks:
        subject = subjects.command("default", app.client_id)
        flooding = tasks.create_task(flood(port, subject, FLOOD_SECONDS, 150_000))
        while not flooding.done():
            answer = await caller.call(
                neighbour.client_id, "echo", token=agent_token("a", tenant="acme"), tenant="acme", seconds=20
            )
            served.append(answer["status"])
    assert set(served) == {"success"}
    assert (await statistics(shared_nats_url, "agentbridge-gateway"))["subjectsLeft"] >= 1
    assert "unsubscribed" in gateway.log

    async def is_back() -> bool:
        try:
            return bool((await caller.call(app.client_id, "echo"))["status"] == "success")
        except nats.errors.NoRespondersError:
            return False

    await until(is_back, 15)


ROWS = {"type": "object", "properties": {"rows": {"items": {"properties": {k: {"type": "string"} for k in "abcdef"}}}}}
COSTLY = [{"type": "function", "name": "load", "parameters": ROWS}]
TABLE = {"rows": [dict.fromkeys("abcdef", "x" * 8)] * 1000}  # some 3 ms to check
AHEAD = 24  # commands with tables: they take longer to check than the next one takes to arrive
LOADS = 150


@pytest.fixture
async def table(gateway: Process) -> AsyncIterator[App]:
    """An application whose parameters take long to check."""
    token = app_token("rows", tenant="flood")
    async with application(gateway.url, {"load": lambda _: 1}, token=token, capabilities=COSTLY) as connected:
        yield connected


async def test_commands_that_take_long_to_check_wait_for_turns_and_delay_no_neighbour(
    caller: Agent, table: App, neighbour: App
) -> None:
    async with asyncio.TaskGroup() as tasks:
        loads = [
            tasks.create_task(
                caller.call(
                    table.client_id, "load", TABLE, token=agent_token(tenant="flood"), tenant="flood", seconds=20
                )
            )
            for _ in range(LOADS)
        ]
        answer = await caller.call(neighbour.client_id, "echo", token=agent_token(tenant="acme"), tenant="acme")
        waiting = sum(not load.done() for load in loads)
    assert answer["status"] == "success"
    assert waiting > LOADS // 10  # in the order of arrival none would; some are done while the rest is still being read
    outcomes = {load.result()["error"]["code"] if "error" in load.result() else "success" for load in loads}
    assert outcomes <= {"success", "overloaded"}
    assert "success" in outcomes


async def test_command_is_cancelled_while_it_waits_for_its_turn(caller: Agent, table: App) -> None:
    how = {"token": agent_token(tenant="flood"), "tenant": "flood", "seconds": 20}
    async with asyncio.TaskGroup() as tasks:
        for _ in range(AHEAD):
            tasks.create_task(caller.call(table.client_id, "load", TABLE, **how))
        last = tasks.create_task(caller.call(table.client_id, "load", TABLE, requestId="last", **how))
        await asyncio.sleep(0)
        cancelled = await caller.ask(table.client_id, {"op": "cancel", "requestId": "last"}, **how)
    assert cancelled == {"cancelled": True}
    assert last.result()["error"]["code"] == "cancelled"


async def test_id_of_a_command_that_waits_for_its_turn_is_taken(caller: Agent, table: App) -> None:
    """A cancel would reach one of two, and its caller would take the other for cancelled, too."""
    how = {"token": agent_token(tenant="flood"), "tenant": "flood", "seconds": 20}
    before = len(table.all_received(type="command"))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(AHEAD):
            tasks.create_task(caller.call(table.client_id, "load", TABLE, **how))
        first = tasks.create_task(caller.call(table.client_id, "load", TABLE, requestId="twice", **how))
        second = tasks.create_task(caller.call(table.client_id, "load", TABLE, requestId="twice", **how))
        await asyncio.sleep(0)
        cancelled = await caller.ask(table.client_id, {"op": "cancel", "requestId": "twice"}, **how)
    assert cancelled == {"cancelled": True}
    assert (first.result()["error"]["code"], second.result()["error"]["code"]) == ("cancelled", "conflict")
    assert len(table.all_received(type="command")) == before + AHEAD


async def test_fresh_token_finds_and_cancels_what_waits_for_its_turn(caller: Agent, table: App) -> None:
    how = {"tenant": "flood", "seconds": 20}
    async with asyncio.TaskGroup() as tasks:
        for _ in range(AHEAD):
            tasks.create_task(caller.call(table.client_id, "load", TABLE, token=agent_token(tenant="flood"), **how))
        last = tasks.create_task(
            caller.call(table.client_id, "load", TABLE, token=agent_token(tenant="flood"), requestId="last", **how)
        )
        await asyncio.sleep(0)
        fresh = agent_token(tenant="flood", ttl_seconds=7200)
        probed, cancelled = await asyncio.gather(
            caller.ask(table.client_id, {"op": "probe", "requestIds": ["last"]}, token=fresh, **how),
            caller.ask(table.client_id, {"op": "cancel", "requestId": "last"}, token=fresh, **how),
        )
    assert probed["inFlight"] == ["last"]
    assert cancelled == {"cancelled": True}
    assert last.result()["error"]["code"] == "cancelled"


async def test_wait_for_a_turn_counts_against_the_timeout(caller: Agent, table: App) -> None:
    how = {"token": agent_token(tenant="flood"), "tenant": "flood", "seconds": 20}
    before = len(table.all_received(type="command"))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(AHEAD):
            tasks.create_task(caller.call(table.client_id, "load", TABLE, **how))
        last = tasks.create_task(caller.call(table.client_id, "load", TABLE, timeoutMs=1, **how))
    assert last.result()["error"]["code"] == "timeout"
    assert "not executed" in last.result()["error"]["message"]
    assert len(table.all_received(type="command")) == before + AHEAD
