"""Refusals by the hundred: few records, an exact count, and readers who are shown it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.nats.audit import Record, statistics, stored
from support.nats.stores import AUDIT_STREAM
from support.played.app import App, never
from support.processes.bridge import Bridge
from support.processes.child import Process
from support.processes.gateways import agent
from support.settings import admin_token, agent_token, environment
from support.wait import until

from protocol import subjects
from protocol.runtime.streams.stores import audit_of

REFUSALS, AT_ONCE = 600, 50
STRANGERS = audit_of(subjects.STRANGERS).stream
GATEWAY, AGENT_API = "agentbridge-gateway", "agentbridge-agent-api"


@pytest.fixture
async def app(bridge: Bridge) -> AsyncIterator[App]:
    offered: list[Any] = ["never", {"name": "guarded", "permissions": ["todo"]}]
    async with bridge.app({"never": never, "guarded": never}, capabilities=offered) as connected:
        await bridge.listed(connected.client_id)
        yield connected


@pytest.fixture
def following(bridge: Bridge, tmp_path: Path) -> Iterator[Process]:
    """`agentbridge audit --follow`."""
    process = Process("agentbridge", tmp_path / "following", environment(bridge.nats_url), "audit", "--follow").launch()
    yield process
    process.end()


async def flood(refuse: Callable[[], Awaitable[object]], count: int = REFUSALS) -> None:
    """Have a number of callers be refused one command after the other."""

    async def caller() -> None:
        for _ in range(count // AT_ONCE):
            await refuse()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(caller())


async def records_of(bridge: Bridge, service: str, outcome: str, stream: str = AUDIT_STREAM) -> list[Record]:
    """Wait until all is stored, and return the records of an outcome."""

    async def is_stored() -> bool:
        return (await statistics(bridge.nats_url, service))["auditWaiting"] == 0

    await until(is_stored, 10)
    return [record for _, record in await stored(bridge.nats_url, stream) if record["outcome"] == outcome]


def outcomes(records: list[Record]) -> int:
    return sum(record.get("count", 1) for record in records)


async def test_a_gateway_sums_up_what_it_refuses(bridge: Bridge, app: App) -> None:
    async with agent(bridge.nats_url) as direct:

        async def refuse() -> None:
            assert await direct.refused(app.client_id, {"target": "guarded"}) == "permission_denied"

        await flood(refuse)
    records = await records_of(bridge, GATEWAY, "permission_denied")
    assert outcomes(records) == REFUSALS
    assert len(records) < REFUSALS
    summed = next(record for record in records if "count" in record)
    told = {name: summed.get(name) for name in ("clientId", "agent", "target", "requestId", "by")}
    assert told == {
        "clientId": app.client_id,
        "agent": "agent-1",
        "target": "guarded",
        "requestId": None,
        "by": "gateway",
    }
    counted = await statistics(bridge.nats_url, GATEWAY)
    assert counted["auditStored"] == REFUSALS
    assert counted["auditSummed"] == outcomes([record for record in records if "count" in record])


async def test_an_agent_api_sums_up_what_it_refuses_and_every_reader_shows_the_count(
    bridge: Bridge, following: Process
) -> None:
    await until(lambda: "listening on" in following.log, 20)
    numbers = iter(range(REFUSALS))

    async def refuse() -> None:
        body = {"clientId": f"nobody-{next(numbers)}", "command": {"target": "echo"}}
        assert (await bridge.http.post("/api/command", json=body)).status_code == httpx.codes.NOT_FOUND

    async with bridge.client(admin_token()).stream(
        "GET", "/api/audit", headers={"Accept": "text/event-stream"}
    ) as followed:
        await flood(refuse)
        records = await records_of(bridge, AGENT_API, "client_not_found")
        assert outcomes(records) == REFUSALS
        assert len(records) < REFUSALS
        async for line in followed.aiter_lines():
            if line.startswith("data:") and '"count":' in line:
                break
    summed = next(record for record in records if "count" in record)
    assert "clientId" not in summed, "it differs"
    answer = await bridge.admin().get("/api/audit", params={"limit": 1000})
    assert outcomes(answer.json()) == REFUSALS
    await until(lambda: f", {summed['count']} times" in following.out, 10)


async def test_what_no_caller_causes_at_will_always_has_a_record_of_its_own(bridge: Bridge, app: App) -> None:
    count = 2 * AT_ONCE

    async def time_out() -> None:
        answer = await bridge.call(app.client_id, "never", timeout_ms=1)
        assert answer.status_code == httpx.codes.GATEWAY_TIMEOUT

    await flood(time_out, count)
    records = await records_of(bridge, GATEWAY, "timeout")
    own = await records_of(bridge, AGENT_API, "timeout")
    assert len({record["requestId"] for record in [*records, *own]}) == count
    assert not [record for record in [*records, *own] if "count" in record]


async def test_strangers_are_summed_up_apart_from_agents(bridge: Bridge, app: App) -> None:
    async with agent(bridge.nats_url) as direct:
        for _ in range(5):
            assert await direct.refused(app.client_id, {"target": "guarded"}, token=None) == "unauthenticated"
        assert await direct.refused(app.client_id, {"target": "guarded"}, token=agent_token()) == "permission_denied"
    assert outcomes(await records_of(bridge, GATEWAY, "unauthenticated", STRANGERS)) == 5
    assert await records_of(bridge, GATEWAY, "unauthenticated") == [], "nobody knows whose they are"
    assert outcomes(await records_of(bridge, GATEWAY, "permission_denied")) == 1
