"""A caller gives its commands ids of its own, and may be careless with them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.nats.nats_server import NatsServer
from support.played.app import App
from support.processes.bridge import Bridge, running_bridge
from support.settings import agent_token


class Till:
    """An application that pays when it is told to."""

    def __init__(self) -> None:
        self.paid: list[str] = []
        self.open = asyncio.Event()

    async def pay(self, parameters: dict[str, Any]) -> str:
        """Pay somebody."""
        await self.open.wait()
        self.paid.append(parameters["who"])
        return f"paid {parameters['who']}"


@pytest.fixture
async def two_apis(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Bridge]:
    """A bridge with two agent APIs."""
    async with running_bridge(tmp_path, private_nats.url, agent_apis=2) as bridge:
        yield bridge


def pay(http: httpx.AsyncClient, app: App, who: str) -> Any:
    """Send a payment; all have the same id."""
    command = {"target": "pay", "parameters": {"who": who}, "requestId": "payment"}
    return http.post("/api/command", json={"clientId": app.client_id, "command": command})


async def test_id_in_flight_is_a_conflict_through_whichever_agent_api_it_comes(two_apis: Bridge) -> None:
    till, other = Till(), two_apis.client(agent_token(), 1)
    async with two_apis.app({"pay": till.pay}) as app, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(pay(two_apis.http, app, "ann"))
        await app.received(type="command")
        for http in (two_apis.http, other):
            second = await pay(http, app, "bob")
            assert (second.status_code, second.json()["code"]) == (409, "conflict")
            assert second.json()["requestId"] == "payment"
        till.open.set()
        answer = await first
        assert (answer.json()["result"], answer.json()["requestId"]) == ("paid ann", "payment")
    assert till.paid == ["ann"]


async def test_caller_that_leaves_under_an_id_in_flight_cancels_no_other_command(two_apis: Bridge) -> None:
    till = Till()
    async with two_apis.app({"pay": till.pay}) as app, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(pay(two_apis.http, app, "ann"))
        await app.received(type="command")
        for _ in range(20):
            second = tasks.create_task(pay(two_apis.http, app, "bob"))
            await asyncio.sleep(0.002)  # the very thing: it leaves while its command is on its way
            second.cancel()
        assert (await pay(two_apis.http, app, "bob")).json()["code"] == "conflict"
        till.open.set()
        assert (await first).json()["result"] == "paid ann"
    assert till.paid == ["ann"]


async def test_another_command_under_a_used_id_never_gets_the_former_one_s_answer(two_apis: Bridge) -> None:
    """Its gateway is frozen when it comes, so that its caller asks what has become of it."""
    till, gateway = Till(), two_apis.gateways[0]
    till.open.set()
    async with two_apis.app({"pay": till.pay}) as app, asyncio.TaskGroup() as tasks:
        assert (await pay(two_apis.http, app, "ann")).json()["result"] == "paid ann"
        gateway.freeze()
        try:
            second = tasks.create_task(pay(two_apis.http, app, "bob"))
            await asyncio.sleep(1.5)  # the very thing: longer than what a gateway takes for a freeze
        finally:
            gateway.thaw()
        answer = (await second).json()
        assert answer.get("result") != "paid ann"
        assert ("bob" in till.paid) == (answer.get("result") == "paid bob")
