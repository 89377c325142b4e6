"""One slow function by every way in: its progress and its result, given up, and lost with its gateway."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.load.ways import ALL, TARGET, Told, Way
from support.played.app import App, never
from support.processes.bridge import Bridge
from support.wait import until

LOST_SECONDS = 2
END_SECONDS = 1  # of a process of the command line, after its answer, on a busy machine
ways = pytest.mark.parametrize("way", ALL.values(), ids=list(ALL))
telling_ways = pytest.mark.parametrize("way", [way for name, way in ALL.items() if name != "http"])


@pytest.fixture
async def app(bridge: Bridge) -> AsyncIterator[App]:
    async with bridge.app({TARGET: never}) as connected:
        await bridge.listed(connected.client_id)
        yield connected


async def taken(app: App) -> str:
    """Wait until the application has its command, and return the id by which it answers."""
    return str((await app.received(10, type="command"))["requestId"])


async def tell(app: App, wire_id: str, *steps: int) -> None:
    """Tell how far the command has come, so slowly that each word is passed on."""
    for step in steps:
        await app.send({"type": "progress", "requestId": wire_id, "progress": step, "total": 3})
        await asyncio.sleep(0.1)  # the gateway passes on 20 a second, the newest of what comes faster


@telling_ways
async def test_progress_comes_in_order_and_then_the_result(bridge: Bridge, app: App, way: Way) -> None:
    told: Told = []
    async with asyncio.TaskGroup() as tasks:
        calling = tasks.create_task(way(bridge, app.client_id, told))
        wire_id = await taken(app)
        await tell(app, wire_id, 1, 2, 3)
        await app.send({"type": "response", "requestId": wire_id, "status": "success", "result": "all of it"})

    assert (await calling)["result"] == "all of it"
    assert [(one["seq"], one["progress"], one["total"]) for one in told] == [(1, 1, 3), (2, 2, 3), (3, 3, 3)]


@ways
async def test_application_is_told_when_its_caller_gives_up(bridge: Bridge, app: App, way: Way) -> None:
    async with asyncio.TaskGroup() as tasks:
        calling = tasks.create_task(way(bridge, app.client_id, []))
        wire_id = await taken(app)
        calling.cancel()
    assert (await app.received(type="cancel"))["requestId"] == wire_id


@ways
async def test_callers_of_a_killed_gateway_are_freed(bridge: Bridge, app: App, way: Way) -> None:
    async with asyncio.TaskGroup() as tasks:
        calling = tasks.create_task(way(bridge, app.client_id, []))
        await taken(app)
        await bridge.gateways[0].kill()
        async with asyncio.timeout(LOST_SECONDS + (END_SECONDS if way is ALL["command line"] else 0)):
            answer = await calling
    assert "client_lost" in str(answer)


async def test_late_answer_is_dropped_whoever_gave_up(bridge: Bridge, app: App) -> None:
    """The next command of the same application gets its own answer, not what came too late for the last."""
    async with asyncio.TaskGroup() as tasks:
        calling = tasks.create_task(ALL["http"](bridge, app.client_id, []))
        late = await taken(app)
        calling.cancel()
    await app.received(type="cancel", requestId=late)
    async with asyncio.TaskGroup() as tasks:
        calling = tasks.create_task(ALL["http"](bridge, app.client_id, []))
        await until(lambda: len(app.all_received(type="command")) == 2)
        own = app.all_received(type="command")[1]["requestId"]
        for wire_id, result in ((late, "too late"), (own, "in time")):
            await app.send({"type": "response", "requestId": wire_id, "status": "success", "result": result})
    assert (await calling)["result"] == "in time"
