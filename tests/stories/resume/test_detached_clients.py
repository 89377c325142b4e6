"""What agents see of clients that have lost their connection: records, announcements, whom a command reaches."""

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg
from support.load.resuming_app import ResumingApp, resuming_application
from support.nats.nats_server import NatsServer
from support.processes.bridge import Bridge, running_bridge
from support.processes.gateways import Agent, agent
from support.settings import agent_token, bearer
from support.wait import subscribed, until


class Announcements:
    """What registries announce of clients."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    async def hear(self, msg: Msg) -> None:
        self.heard.append(json.loads(msg.data))

    def of(self, client_id: str) -> list[str]:
        """Return the changes of a client, in order, without those of its capabilities."""
        words = [each for each in self.heard if each["clientId"] == client_id and each["change"] != "updated"]
        return [f"{each['change']} {each['reason']}" if "reason" in each else str(each["change"]) for each in words]


@pytest.fixture
async def bridge(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Bridge]:
    async with running_bridge(tmp_path / "bridge", private_nats.url, gateways=2, registries=2) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture
async def announced(private_nats: NatsServer) -> AsyncIterator[Announcements]:
    heard = Announcements()
    async with agent(private_nats.url) as listener:
        await listener.nats.subscribe("agentbridge.default.client.>", cb=heard.hear)
        await subscribed(listener.nats)
        yield heard


@pytest.fixture
async def caller(private_nats: NatsServer) -> AsyncIterator[Agent]:
    async with agent(private_nats.url) as connected:
        yield connected


def named(name: str, parameters: dict[str, Any]) -> str:
    return name


async def state_is(bridge: Bridge, client_id: str, state: str) -> bool:
    answer = await bridge.http.get(f"/api/clients/{client_id}")
    return bool(answer.json().get("state") == state)


async def lose(bridge: Bridge, app: ResumingApp) -> None:
    """Have an application away until it is let back."""
    app.returns.clear()
    app.cut()
    await until(partial(state_is, bridge, app.client_id, "detached"))


async def come_back(bridge: Bridge, app: ResumingApp) -> None:
    count = len(app.connections)
    app.returns.set()
    assert (await app.connected(count + 1))["resumed"] is True
    await until(partial(state_is, bridge, app.client_id, "active"))


async def test_everybody_hears_that_a_client_is_away_and_back(bridge: Bridge, announced: Announcements) -> None:
    async with resuming_application(bridge.gateways, {"f": partial(named, "one")}) as app:
        await bridge.listed(app.client_id)
        before = (await bridge.http.get(f"/api/clients/{app.client_id}")).json()
        for _ in range(2):  # the second time at the gateway that it has come to
            await lose(bridge, app)
            await come_back(bridge, app)
        after = (await bridge.http.get(f"/api/clients/{app.client_id}")).json()
        assert after["capabilities"] == before["capabilities"]
        assert after["connectedAt"] == before["connectedAt"]
        client_id = app.client_id
    away_and_back = ["detached", "resumed"] * 2
    wanted = ["connected", *away_and_back, "disconnected closed"]
    await until(lambda: announced.of(client_id) == wanted)


async def test_client_that_is_away_is_chosen_only_if_nobody_else_is_there(bridge: Bridge) -> None:
    async with (
        resuming_application(bridge.gateways, {"f": partial(named, "one"), "g": partial(named, "one")}) as one,
        resuming_application(bridge.gateways, {"f": partial(named, "other")}, first=1) as other,
    ):
        await bridge.listed(one.client_id, other.client_id)
        assert (await bridge.call(None, "f")).json()["code"] == "ambiguous_client"
        await lose(bridge, one)
        for _ in range(3):
            assert (await bridge.call(None, "f")).json()["result"] == "other"
        away = await bridge.call(None, "g")
        assert (away.status_code, away.json()["code"], away.json()["retryable"]) == (503, "unavailable", True)
        await lose(bridge, other)
        nobody = await bridge.call(None, "f")
        assert (nobody.status_code, nobody.json()["code"]) == (503, "unavailable")
        await come_back(bridge, one)
        assert (await bridge.call(None, "f")).json()["result"] == "one"
        other.returns.set()


async def test_direct_agents_find_those_that_are_there(bridge: Bridge, caller: Agent) -> None:
    async with (
        resuming_application(bridge.gateways, {"f": partial(named, "one")}) as one,
        resuming_application(bridge.gateways, {"f": partial(named, "other")}, first=1) as other,
    ):
        await bridge.listed(one.client_id, other.client_id)
        await lose(bridge, one)
        await until(lambda: _finds(caller, [other.client_id]))
        await lose(bridge, other)
        await until(lambda: _finds(caller, sorted([one.client_id, other.client_id])))
        one.returns.set()
        other.returns.set()


async def _finds(caller: Agent, client_ids: list[str]) -> bool:
    body = json.dumps({"target": "f"}).encode()
    reply = await caller.nats.request("agentbridge.default.registry.find", body, 5, headers=bearer(agent_token()))
    return [record["clientId"] for record in json.loads(reply.data)["clients"]] == client_ids


async def test_session_that_is_handed_over_is_away_until_its_client_or_the_last_gateway_ends_that(
    bridge: Bridge, announced: Announcements
) -> None:
    async with (
        resuming_application(bridge.gateways, {"f": partial(named, "one")}) as back,
        resuming_application(bridge.gateways, {"f": partial(named, "other")}) as away,
    ):
        await bridge.listed(back.client_id, away.client_id)
        await lose(bridge, back)
        await lose(bridge, away)
        assert await bridge.gateways[0].terminate() == 0
        assert await state_is(bridge, away.client_id, "detached")
        await come_back(bridge, back)
        assert announced.of(back.client_id) == ["connected", "detached", "resumed"]
        assert announced.of(away.client_id) == ["connected", "detached"]
        assert await bridge.gateways[1].terminate() == 0
        await until(lambda: announced.of(away.client_id) == ["connected", "detached", "disconnected shutdown"])
        await until(lambda: announced.of(back.client_id)[-1] == "disconnected shutdown")


async def test_administrator_ends_a_session_without_a_client(bridge: Bridge, announced: Announcements) -> None:
    async with resuming_application(bridge.gateways[:1], {"f": partial(named, "one")}) as app:
        await bridge.listed(app.client_id)
        await lose(bridge, app)
        client_id = app.client_id
        assert (await bridge.admin().delete(f"/api/clients/{client_id}")).status_code == 204
        await bridge.listed()
        await until(lambda: announced.of(client_id)[-1] == "disconnected administrator")
        app.returns.set()
