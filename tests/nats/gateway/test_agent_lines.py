"""Agents with a good token that send more than a gateway handles as it arrives: order, neighbours, refusals."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from support.played.app import App, Handler, application
from support.processes.child import Process
from support.processes.gateways import Agent, shared_gateway
from support.settings import agent_token, app_token

from protocol.runtime.connections.agent_turns import AT_ONCE

HANDLERS: dict[str, Handler] = {
    "echo": lambda parameters: parameters,
    "hold": lambda parameters: asyncio.Event().wait(),
}
COMMANDS = 3 * AT_ONCE  # less than an application takes at once
LARGE = {"text": "x" * 200_000}
LARGE_COMMANDS = 40
FLOOD: dict[str, Any] = {"tenant": "flood", "seconds": 20}


@pytest.fixture(scope="module")
def gateway(shared_nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with shared_gateway(tmp_path_factory.mktemp("gateway"), shared_nats_url) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture
async def app(gateway: Process) -> AsyncIterator[App]:
    token = app_token("busy", tenant="flood")
    async with application(gateway.url, HANDLERS, token=token, capabilities=["echo", "hold"]) as connected:
        yield connected


@pytest.mark.parametrize("fresh", [False, True], ids=["same token", "fresh token"])
async def test_cancel_does_not_overtake_the_command_that_waits_in_line(caller: Agent, app: App, fresh: bool) -> None:
    """It would find no command, which would then run though its caller has given up."""
    token = agent_token("busy", tenant="flood")
    canceller = agent_token("busy", tenant="flood", ttl_seconds=7200) if fresh else token
    await caller.call(app.client_id, "echo", token=token, **FLOOD)  # the token is known from here on
    async with asyncio.TaskGroup() as tasks:
        for _ in range(COMMANDS):
            tasks.create_task(caller.call(app.client_id, "echo", token=token, **FLOOD))
        last = tasks.create_task(caller.call(app.client_id, "hold", token=token, requestId="last", **FLOOD))
        await asyncio.sleep(0)
        cancel = {"op": "cancel", "requestId": "last"}
        cancelled = await caller.ask(app.client_id, cancel, token=canceller, **FLOOD)
    assert cancelled == {"cancelled": True}
    assert last.result()["error"]["code"] == "cancelled"


async def test_agent_with_its_share_waiting_is_told_so_and_its_neighbour_is_answered(
    gateway: Process, caller: Agent, app: App
) -> None:
    token, of_neighbour = agent_token("busy", tenant="flood"), agent_token("n", tenant="acme")
    await caller.call(app.client_id, "echo", token=token, **FLOOD)
    async with application(
        gateway.url, HANDLERS, token=app_token("ann", tenant="acme"), capabilities=["echo"]
    ) as neighbour:
        await caller.call(neighbour.client_id, "echo", token=of_neighbour, tenant="acme")
        async with asyncio.TaskGroup() as tasks:
            asking = [
                tasks.create_task(caller.call(app.client_id, "echo", LARGE, token=token, **FLOOD))
                for _ in range(LARGE_COMMANDS)
            ]
            answer = await caller.call(neighbour.client_id, "echo", token=of_neighbour, tenant="acme", seconds=20)
    assert answer["status"] == "success"
    told = Counter(task.result()["error"]["code"] if "error" in task.result() else "success" for task in asking)
    assert told.keys() <= {"success", "overloaded"}
    assert told["success"] >= AT_ONCE // 2
