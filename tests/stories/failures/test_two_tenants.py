"""Two tenants: whatever one does with events, keys and refusals, the other's are still there, and its commands run.

The neighbour is `acme`. Everybody else uses the tenant `default`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from nats.js.api import DiscardPolicy
from support.nats.audit import recorded, stored
from support.nats.events import reading
from support.nats.nats_server import NatsServer
from support.nats.stores import AUDIT_STREAM
from support.played.app import App, never
from support.processes.bridge import Bridge, running_bridge
from support.processes.gateways import agent
from support.settings import admin_token, agent_token, app_token
from support.wait import until

from protocol import subjects
from protocol.errors import Code
from protocol.runtime.streams.stores import audit_of

KIB, MIB = 1024, 1024 * 1024
REFUSALS = 40  # of strangers at one client: what a gateway answers at once is 50, and it drops what is above
ACME: dict[str, Any] = {"tenant": "acme"}
ACMES_AUDIT, STRANGERS = audit_of("acme").stream, audit_of(subjects.STRANGERS).stream


def echo(parameters: dict[str, Any]) -> dict[str, Any]:
    return parameters


def large(parameters: dict[str, Any]) -> str:
    return "x" * 30 * KIB


@pytest.fixture
async def bridge(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Bridge]:
    """A bridge whose stores stop growing soon; a session may send as many bytes as it likes."""
    sizes = {"events_max_bytes": 32 * MIB, "audit_max_bytes": 4 * MIB, "keys_max_bytes": 4 * MIB}
    rates = {"bytes_per_session": 0, "bytes_per_tenant": 0}
    async with running_bridge(tmp_path, private_nats.url, **sizes, **rates) as running:
        yield running


@contextlib.asynccontextmanager
async def neighbour(bridge: Bridge) -> AsyncIterator[tuple[App, httpx.AsyncClient]]:
    """An application of acme, and an agent of acme."""
    async with bridge.app({"f": echo}, token=app_token("ann", **ACME)) as app:
        yield app, bridge.client(agent_token("agent", **ACME))


async def command(http: httpx.AsyncClient, client_id: str, target: str, **more: Any) -> dict[str, Any]:
    body = {"clientId": client_id, "command": {"target": target, "action": "call", "parameters": {}, **more}}
    answer: dict[str, Any] = (await http.post("/api/command", json=body)).json()
    return {"success": False} | answer


async def test_flood_of_large_events_pushes_out_nobody_elses(bridge: Bridge) -> None:
    async with neighbour(bridge) as (theirs, http), bridge.app() as ours:
        async with reading(http) as stream:
            since = stream.last_id
        await theirs.send({"type": "event", "event": "kept", "data": 1, "id": "e1"})
        await theirs.received(type="ack", id="e1")
        for number in range(600):
            await ours.send({"type": "event", "event": "flood", "data": "x" * 940 * KIB, "id": f"e{number}"})
            await ours.received(id=f"e{number}", seconds=20)
        async with reading(http, since, event="*", clients="false") as stream:
            said = await stream.next(10)
            assert (said.event, said.data["data"]) == ("event", 1)


async def test_keys_of_one_tenant_fill_its_own_store_alone(bridge: Bridge) -> None:
    async with neighbour(bridge) as (theirs, http), bridge.app({"large": large, "f": echo}) as ours:
        assert (await command(http, theirs.client_id, "f", idempotencyKey="before"))["success"]
        refused: dict[str, Any] = {}
        for number in range(1000):
            answer = await command(bridge.http, ours.client_id, "large", idempotencyKey=f"k{number}")
            if not answer["success"]:
                refused = answer
                break
        assert (refused["code"], refused["retryable"]) == (Code.UNAVAILABLE.value, True)
        assert "AGENTBRIDGE_KEYS_MAX_BYTES" in refused["message"]
        executed = len(ours.all_received(type="command"))
        assert (await command(bridge.http, ours.client_id, "f"))["success"]  # without a key all goes on
        assert (await command(bridge.http, ours.client_id, "large", idempotencyKey="k0"))["success"]
        assert len(ours.all_received(type="command")) == executed + 1
        again = await command(http, theirs.client_id, "f", idempotencyKey="before")
        assert again["success"]
        assert len(theirs.all_received(type="command")) == 1
        assert (await command(http, theirs.client_id, "f", idempotencyKey="after"))["success"]


async def test_outcome_without_room_is_remembered_as_executed(bridge: Bridge, private_nats: NatsServer) -> None:
    """Its reservation left room to say so; the command does not run again."""
    async with bridge.app({"slow": never, "large": large}) as ours:
        release = asyncio.Event()

        async def slow(parameters: dict[str, Any]) -> str:
            await release.wait()
            return "y" * 20 * KIB

        ours.handlers["slow"] = slow
        async with asyncio.TaskGroup() as tasks:
            waits = tasks.create_task(command(bridge.http, ours.client_id, "slow", idempotencyKey="early"))
            await ours.received(type="command", target="slow")
            for number in range(1000):
                if not (await command(bridge.http, ours.client_id, "large", idempotencyKey=f"k{number}"))["success"]:
                    break
            release.set()
        assert waits.result()["result"] == "y" * 20 * KIB

        async def told() -> bool:
            again = await command(bridge.http, ours.client_id, "slow", idempotencyKey="early")
            return bool(again.get("code") == Code.PAYLOAD_TOO_LARGE.value)

        await until(told, 10)
        assert len(ours.all_received(type="command", target="slow")) == 1


async def test_refusals_of_one_tenant_and_of_strangers_push_out_nobody_elses_audit(
    bridge: Bridge, private_nats: NatsServer
) -> None:
    async with (
        neighbour(bridge) as (theirs, http),
        bridge.app({"f": echo}) as ours,
        agent(private_nats.url) as stranger,
    ):
        assert (await command(http, theirs.client_id, "f", requestId="kept"))["success"]
        await recorded(private_nats.url, 1, stream=ACMES_AUDIT)
        for number in range(REFUSALS):
            await command(bridge.http, ours.client_id, "nothing-of-that-name", requestId=f"r{number}")
            await stranger.request(
                theirs.client_id, {"target": "f", "requestId": f"s{number}"}, token=None, tenant="acme"
            )
        for stream in (STRANGERS, AUDIT_STREAM):
            assert await until(partial(refusals, private_nats.url, stream), 10) == REFUSALS
        found = (await bridge.client(admin_token(**ACME)).get("/api/audit?limit=1000")).json()
        assert [record["requestId"] for record in found] == ["kept"]


async def refusals(nats_url: str, stream: str) -> int:
    """Return how many refusals are recorded once all are; several may stand in one record."""
    number = sum(record.get("count", 1) for _, record in await stored(nats_url, stream))
    return number if number >= REFUSALS else 0


async def test_lost_store_of_one_tenant_keeps_no_other_waiting(bridge: Bridge, private_nats: NatsServer) -> None:
    """Its stream refuses every message: clients of others are announced, and its own are listed all the same."""
    async with neighbour(bridge) as (_, http), agent(private_nats.url) as operator, reading(http) as stream:
        context = operator.nats.jetstream()
        async with bridge.app({"f": echo}) as first:
            await bridge.listed(first.client_id)
        config = (await context.stream_info("agentbridge_events_default")).config
        config.max_bytes, config.discard = 1, DiscardPolicy.NEW
        await context.update_stream(config)
        async with bridge.app({"f": echo}) as ours, bridge.app({"f": echo}, token=app_token("ben", **ACME)) as theirs:
            await bridge.listed(ours.client_id, seconds=10)
            while (await stream.next(10)).data.get("clientId") != theirs.client_id:
                pass
