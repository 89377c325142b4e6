"""Agents on their WebSocket, with real gateways, registries and applications."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.nats.nats_server import NatsServer
from support.played.agent_socket import AgentSocket, agent_socket
from support.played.app import App, Frame, never
from support.processes.bridge import Bridge, running_bridge
from support.settings import agent_token, app_token
from support.wait import until

LOST_SECONDS = 2
SLACK_SECONDS = 1.5  # for a machine that does many other things


@pytest.fixture
async def bridge(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Bridge]:
    async with running_bridge(tmp_path / "bridge", private_nats.url, gateways=2, agent_apis=2) as running:
        yield running


async def commands_at(app: App, number: int) -> list[Frame]:
    await until(lambda: len(app.all_received(type="command")) >= number)
    return app.all_received(type="command")


async def cancels_at(app: App, number: int) -> set[str]:
    await until(lambda: len(app.all_received(type="cancel")) >= number)
    return {frame["requestId"] for frame in app.all_received(type="cancel")}


async def test_many_commands_progress_and_cancel_reach_the_application_and_back(bridge: Bridge) -> None:
    numbers = itertools.count(1)

    async def work(parameters: dict[str, Any]) -> Any:
        command = app.all_received(type="command")[next(numbers) - 1]
        for step in (1, 2):
            frame = {"type": "progress", "requestId": command["requestId"], "progress": step, "total": 2}
            await app.send(frame)
        return parameters

    url = bridge.agent_apis[0].url
    async with bridge.app({"work": work, "wait": never}) as app, agent_socket(url) as agent:
        idents = [await agent.command(app.client_id, "work", {"n": number}) for number in range(60)]
        for number, ident in enumerate(idents):
            assert (await agent.answer(ident))["result"] == {"n": number}
            told = [frame["type"] for frame in agent.frames if frame["id"] == ident]
            assert told[-1] == "response"
            assert 1 <= told.count("progress") <= 2
        ident = await agent.command(app.client_id, "wait")
        command = (await commands_at(app, 61))[-1]
        await agent.send({"type": "cancel", "id": ident})
        assert (await agent.answer(ident))["error"]["code"] == "cancelled"
        assert await cancels_at(app, 1) == {command["requestId"]}


async def test_closed_and_killed_sockets_cancel_their_commands(bridge: Bridge) -> None:
    async with bridge.app({"wait": never}) as app:
        async with agent_socket(bridge.agent_apis[0].url) as agent:
            for _ in range(10):
                await agent.command(app.client_id, "wait")
            await commands_at(app, 10)
        await cancels_at(app, 10)
        async with agent_socket(bridge.agent_apis[0].url) as agent:
            await agent.command(app.client_id, "wait")
            await commands_at(app, 11)
            agent.socket.transport.abort()
            assert len(await cancels_at(app, 11)) == 11


async def test_killed_gateway_loses_its_commands_soon_and_its_clients_in_the_picture(bridge: Bridge) -> None:
    async with (
        bridge.app({"wait": never}) as lost,
        bridge.app({"echo": lambda parameters: parameters}, gateway=1) as kept,
        agent_socket(bridge.agent_apis[0].url) as agent,
    ):
        await bridge.listed(lost.client_id, kept.client_id)
        await agent.send({"type": "capabilities", "id": "w"})
        await agent.send({"type": "subscribe", "id": "s", "clients": True})
        await agent.received(type="ack", id="s")
        idents = [await agent.command(lost.client_id, "wait") for _ in range(20)]
        await commands_at(lost, 20)
        await bridge.gateways[0].kill()
        async with asyncio.timeout(LOST_SECONDS + SLACK_SECONDS):
            for ident in idents:
                assert (await agent.answer(ident))["error"]["code"] == "client_lost"
        assert (await agent.call(kept.client_id, "echo", {"a": 1}))["result"] == {"a": 1}
        gone = await agent.received(type="client", seconds=8)
        assert (gone["data"]["clientId"], gone["data"]["reason"]) == (lost.client_id, "gateway_lost")
        await pictured(agent, "removed", lost)


async def pictured(agent: AgentSocket, what: str, app: App) -> None:
    """Wait until the agent's picture of clients was told this of a client."""
    await until(lambda: any(app.client_id in str(frame[what]) for frame in agent.all_received(type="capabilities")))


async def test_agents_see_nothing_beyond_their_tenant_and_limits(bridge: Bridge) -> None:
    """Two tenants, and two agents of one tenant who are limited to a user each; wording included."""
    url = bridge.agent_apis[1].url
    echo = {"echo": lambda parameters: parameters}
    async with (
        bridge.app(echo, token=app_token("ann")) as ann,
        bridge.app(echo, token=app_token("bob")) as bob,
        bridge.app(echo, token=app_token("zoe", tenant="acme")) as zoe,
        agent_socket(url, agent_token("of-ann", limits={"users": ["ann"]})) as of_ann,
        agent_socket(url, agent_token("of-bob", limits={"users": ["bob"]})) as of_bob,
        agent_socket(url, agent_token("of-acme", tenant="acme")) as of_acme,
    ):
        own = {"ann": (of_ann, ann), "bob": (of_bob, bob), "zoe": (of_acme, zoe)}
        await bridge.listed(ann.client_id, bob.client_id)
        for agent, _ in own.values():
            await agent.send({"type": "capabilities", "id": "w"})
            await agent.send({"type": "subscribe", "id": "s", "events": ["*"], "clients": True})
            await agent.received(type="ack", id="s")
        for agent, app in own.values():
            await pictured(agent, "added", app)
            assert (await agent.call(None, "echo", {"x": 1}))["clientId"] == app.client_id
            foreign = [other.client_id for _, other in own.values() if other is not app]
            for client_id in (*foreign, "nobody"):
                answer = await agent.call(client_id, "echo")
                assert (answer["error"]["code"], answer["error"]["message"]) == (
                    "client_not_found",
                    "no connected client with this id",
                )
            gathered = await agent.call(None, "echo", clientIds=[app.client_id, *foreign])
            assert [result["status"] for result in gathered["results"].values()] == ["success", "error", "error"]
        for _, app in own.values():
            await app.send({"type": "event", "event": "hello", "data": app.client_id})
            await app.send({"type": "metadata", "metadata": {"secret": app.client_id}})
        for agent, app in own.values():
            event = await agent.received(type="event")
            await pictured(agent, "updated", app)
            assert event["data"]["data"] == app.client_id
            told = [frame for frame in agent.frames if frame["type"] in ("event", "client", "capabilities", "gap")]
            others = [other.client_id for _, other in own.values() if other is not app]
            assert not [client_id for client_id in others if client_id in str(told)]


async def test_rolling_restart_sends_agents_elsewhere(bridge: Bridge) -> None:
    async with bridge.app({"echo": lambda parameters: parameters}) as app:
        async with agent_socket(bridge.agent_apis[0].url) as agent:
            assert (await agent.call(app.client_id, "echo"))["status"] == "success"
            assert await bridge.agent_apis[0].terminate() == 0
            assert await agent.closed() == 1012
        async with agent_socket(bridge.agent_apis[1].url) as agent:
            assert (await agent.call(app.client_id, "echo"))["status"] == "success"
    assert not any("Traceback" in process.log for process in bridge.processes), bridge.log
