"""Applications that read slowly: what finds no room is refused before it is sent, and costs nobody the connection."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.played.app import application
from support.played.slow_app import SlowApp, slow_application
from support.processes.child import Process
from support.processes.gateways import Agent, gateway_process, shared_gateway
from support.settings import agent_token, app_token
from support.wait import until

BURST = 60
STALLED = 6
SLOW = 50_000_000  # bytes a second: as fast as it can
TEXT = "x" * 150_000
SECONDS = 30


@pytest.fixture(scope="module")
def gateway(shared_nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with shared_gateway(tmp_path_factory.mktemp("gateway"), shared_nats_url) as running:
        yield running
        assert "Traceback" not in running.log


async def test_burst_is_answered_or_overloaded_and_costs_no_connection(gateway: Process, caller: Agent) -> None:
    async with slow_application(gateway.url, 2_000_000) as app:
        outcomes = await burst(caller, app)
        assert outcomes.keys() == {"success", "overloaded"}
        assert outcomes["success"] == len([frame for frame in app.frames if frame["type"] == "command"])
        assert (await caller.call(app.client_id, "count", {"text": ""}))["result"] == 0
        assert not app.closed


async def test_client_that_reads_too_slowly_for_a_pong_stays(gateway: Process, caller: Agent) -> None:
    """Its pong waits behind nine seconds of a command; what it takes of that shows that it lives."""
    async with slow_application(gateway.url, 100_000) as app:
        parameters = {"text": "x" * 900_000}
        assert (await caller.call(app.client_id, "count", parameters, seconds=SECONDS))["result"] == 900_000
        assert not app.closed


async def test_clients_that_leave_their_share_unread_get_no_more_and_neighbours_do(
    shared_nats_url: str, tmp_path: Path, caller: Agent
) -> None:
    small = 4 * 1024 * 1024
    async with (
        gateway_process(tmp_path, shared_nats_url, max_unread_bytes=small) as gateway,
        contextlib.AsyncExitStack() as stack,
        application(gateway.url, {"echo": lambda given: given}) as neighbour,
    ):
        token = app_token("flooder", tenant="flood")
        apps = [await stack.enter_async_context(slow_application(gateway.url, SLOW, token)) for _ in range(STALLED)]
        for app in apps:
            app.reading.clear()
        limits = [limit for app in apps for limit in await limits_of(caller, app)]
        assert {"buffer", "agent"} == set(limits)
        assert not any(app.closed for app in apps)
        answer = await caller.call(neighbour.client_id, "echo", {"text": "x" * 900_000})
        assert answer["status"] == "success", answer["error"]
        for app in apps:
            app.reading.set()
        await until(lambda: all(commands_of(app) for app in apps[:2]), SECONDS)


async def limits_of(caller: Agent, app: SlowApp) -> list[str]:
    """Send commands that nobody reads; return the limits that refused some of them."""
    token = agent_token("flooder", tenant="flood")
    answers = await asyncio.gather(
        *(
            caller.call(app.client_id, "count", {"text": "x" * 400_000}, token=token, tenant="flood", timeoutMs=500)
            for _ in range(20)
        )
    )
    refused = [answer["error"] for answer in answers if answer["error"]["code"] == "overloaded"]
    return [error.get("details", {}).get("limit", "buffer") for error in refused]


def commands_of(app: SlowApp) -> int:
    return len([frame for frame in app.frames if frame["type"] == "command"])


async def burst(caller: Agent, app: SlowApp) -> Counter[str]:
    """Send all commands at once and count what becomes of them."""
    async with asyncio.TaskGroup() as tasks:
        calls = [
            tasks.create_task(caller.call(app.client_id, "count", {"text": TEXT}, seconds=SECONDS))
            for _ in range(BURST)
        ]
    answers = [call.result() for call in calls]
    return Counter(answer["error"]["code"] if "error" in answer else answer["status"] for answer in answers)
