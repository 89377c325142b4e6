"""What agents hear of clients that are away for a moment, and of those that have gone for good."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.nats.nats_server import NatsServer
from support.nats.relay import relay_to
from support.played.app import App, application
from support.processes.bridge import Bridge
from support.processes.child import Process
from support.settings import agent_token, environment
from support.wait import until

Told = tuple[int, str, bool]
AWAY = (503, "unavailable", True)
UNKNOWN, NOT_FOUND = (404, "unknown_capability", False), (404, "client_not_found", False)


def echo(parameters: dict[str, Any]) -> dict[str, Any]:
    return parameters


async def told(bridge: Bridge, http: httpx.AsyncClient | None = None, **whom: Any) -> Told:
    """Return what becomes of a command, if it is refused."""
    answer = await (http or bridge.http).post("/api/command", json={"command": {"target": "echo"}, **whom})
    problem = answer.json()
    return answer.status_code, problem["code"], problem["retryable"]


async def told_of(bridge: Bridge, client_id: str, http: httpx.AsyncClient | None = None) -> tuple[Told, ...]:
    """Return what commands for this client, for the one that offers the target, and for any are told."""
    ways: list[dict[str, Any]] = [{"clientId": client_id}, {}, {"any": True, "match": {"user": "user-1"}}]
    return tuple([await told(bridge, http, **way) for way in ways])


async def offered(bridge: Bridge, app: App) -> None:
    async def offers() -> bool:
        return app.client_id in await bridge.capabilities(name="echo")

    await until(offers)


async def test_clients_of_a_gateway_that_restarts_are_unavailable_until_they_are_back(bridge: Bridge) -> None:
    async with bridge.app({"echo": echo}) as app:
        await offered(bridge, app)
        await bridge.gateways[0].terminate()
        assert await told_of(bridge, app.client_id) == (AWAY, AWAY, AWAY)
        other = bridge.client(agent_token(limits={"users": ["bob"]}))
        assert await told_of(bridge, app.client_id, other) == (NOT_FOUND, UNKNOWN, UNKNOWN)
        record = f"/api/clients/{app.client_id}"
        assert [(await http.get(record)).status_code for http in (bridge.http, other)] == [503, 404]
    await bridge.gateways[0].start()
    async with bridge.app({"echo": echo}) as back:
        await offered(bridge, back)
        answer = await bridge.call(None, "echo", {"n": 1})
        assert (answer.json()["clientId"], answer.json()["result"]) == (back.client_id, {"n": 1})


async def test_client_whose_connection_broke_is_unavailable_at_once_and_after(bridge: Bridge) -> None:
    async with bridge.app({"echo": echo}) as app:
        await offered(bridge, app)
        app.socket.transport.abort()
        await until(lambda: _refused(bridge, app))
        assert await told_of(bridge, app.client_id) == (AWAY, AWAY, AWAY)
        await bridge.listed()
        await asyncio.sleep(1.5)  # its gateway answers for a second more
        assert await told_of(bridge, app.client_id) == (AWAY, AWAY, AWAY)


async def _refused(bridge: Bridge, app: App) -> bool:
    return (await bridge.call(app.client_id, "echo")).status_code != httpx.codes.OK


@pytest.mark.parametrize("unregisters", [False, True])
async def test_client_that_closed_or_offers_it_no_more_is_not_expected_back(bridge: Bridge, unregisters: bool) -> None:
    async with bridge.app({"echo": echo}) as app:
        await offered(bridge, app)
        if unregisters:
            await app.register(["other"])
            await until(lambda: _nobody_offers(bridge))
            assert await told_of(bridge, app.client_id) == (UNKNOWN, UNKNOWN, UNKNOWN)
    await bridge.listed()
    assert await told_of(bridge, app.client_id) == (NOT_FOUND, UNKNOWN, UNKNOWN)


async def _nobody_offers(bridge: Bridge) -> bool:
    return not await bridge.capabilities(name="echo")


async def test_clients_of_a_gateway_that_is_cut_off_from_nats_are_unavailable_and_then_reached(
    bridge: Bridge, private_nats: NatsServer, tmp_path: Path
) -> None:
    async with relay_to(private_nats.port) as (relay, url):
        gateway = Process("gateway", tmp_path / "cut", environment(url))
        await gateway.start()
        try:
            async with application(gateway.url, {"echo": echo}) as app:
                await offered(bridge, app)
                relay.cut()
                await until(lambda: _refused(bridge, app))
                heard = set[Told]()
                while await bridge.capabilities():
                    heard.update(await told_of(bridge, app.client_id))
                heard.update(await told_of(bridge, app.client_id))  # the registry has withdrawn it by now
                assert heard == {AWAY}
                relay.mend()
                await until(lambda: _reached(bridge, app), 10)
        finally:
            gateway.end()


async def _reached(bridge: Bridge, app: App) -> bool:
    return (await bridge.call(app.client_id, "echo")).status_code == httpx.codes.OK


async def test_command_line_is_told_the_same(bridge: Bridge) -> None:
    async with bridge.app({"echo": echo}) as app, bridge.app({"echo": echo}) as closed:
        await bridge.listed(app.client_id, closed.client_id)
        app.socket.transport.abort()
        await closed.socket.close()
        await bridge.listed()
    await asyncio.sleep(1.1)  # their gateway answers for a second more
    answers = [await call(bridge, each.client_id) for each in (app, closed)]
    assert [(each["error"]["code"], each["error"]["retryable"]) for each in answers] == [AWAY[1:], NOT_FOUND[1:]]


CALL_SECONDS = 20


async def call(bridge: Bridge, client_id: str) -> Any:
    """Return what `agentbridge call` prints."""
    command = [sys.executable, "-m", "agentbridge", "call", client_id, "echo", "--json"]
    more = {"AGENTBRIDGE_NATS_URL": bridge.nats_url, "AGENTBRIDGE_TOKEN": agent_token()}
    child = await asyncio.create_subprocess_exec(*command, stdout=PIPE, env=more)
    async with asyncio.timeout(CALL_SECONDS):
        out, _ = await child.communicate()
    return json.loads(out)
