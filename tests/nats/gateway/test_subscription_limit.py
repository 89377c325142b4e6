"""A gateway whose NATS server takes no more subscriptions of it: one session is one subscription."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import MakeNats
from nats.errors import NoRespondersError
from support.nats.nats_server import NatsServer
from support.played.app import App, Handler, application, socket_of
from support.processes.child import Process
from support.processes.gateways import Agent, agent, gateway_process
from support.settings import app_token
from support.wait import until
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from protocol.errors import CloseCode

MAX_SUBSCRIPTIONS = 60  # of which a gateway needs about twenty itself
HANDLERS: dict[str, Handler] = {"echo": lambda parameters: parameters}


class Stage(NamedTuple):
    """A gateway at its server's limit, or soon there."""

    nats: NatsServer
    gateway: Process
    caller: Agent


@pytest.fixture
async def stage(make_nats: MakeNats, tmp_path: Path) -> AsyncIterator[Stage]:
    server = make_nats(f"max_subscriptions: {MAX_SUBSCRIPTIONS}")
    await server.start()
    async with gateway_process(tmp_path / "gateway", server.url) as gateway, agent(server.url) as caller:
        yield Stage(server, gateway, caller)
        assert "Traceback" not in gateway.log


async def opened(stage: Stage, apps: contextlib.AsyncExitStack) -> App:
    return await apps.enter_async_context(application(stage.gateway.url, HANDLERS, capabilities=["echo"]))


async def answers(stage: Stage, app: App) -> bool:
    answer = await stage.caller.call(app.client_id, "echo")
    return bool(answer["status"] == "success")


async def answers_again(stage: Stage, app: App) -> bool:
    """Say whether the application is reachable yet through a NATS that has been restarted."""
    try:
        return await answers(stage, app)
    except NoRespondersError:
        return False


async def let_in(socket: ClientConnection) -> str:
    """Return the id of a client that is let in; nothing for one that is refused, which must be as one too many."""
    try:
        async with asyncio.timeout(10):
            return str(json.loads(await socket.recv())["clientId"])
    except ConnectionClosed:
        assert socket.close_code == CloseCode.TOO_MANY
        return ""


async def one_more(stage: Stage) -> bool:
    async with socket_of(stage.gateway.url, app_token()) as socket:
        return bool(await let_in(socket))


async def crowd(stage: Stage, sockets: contextlib.AsyncExitStack) -> list[str]:
    """Open more clients at once than there is room for, and return the ids of those that were let in."""
    opening = [sockets.enter_async_context(socket_of(stage.gateway.url, app_token())) for _ in range(MAX_SUBSCRIPTIONS)]
    ids = await asyncio.gather(*[let_in(socket) for socket in await asyncio.gather(*opening)])
    return [client_id for client_id in ids if client_id]


async def fill(stage: Stage, sockets: contextlib.AsyncExitStack) -> None:
    """Open clients, one after the other, until one is refused."""
    client_id = "the first"
    while client_id:
        client_id = await let_in(await sockets.enter_async_context(socket_of(stage.gateway.url, app_token())))


async def test_client_above_the_limit_is_refused_and_the_others_stay(stage: Stage) -> None:
    async with contextlib.AsyncExitStack() as apps, contextlib.AsyncExitStack() as sockets:
        app = await opened(stage, apps)
        await fill(stage, sockets)
        assert not await one_more(stage)
        assert await answers(stage, app)
        await sockets.aclose()
        await until(lambda: one_more(stage), 10)
        assert await answers(stage, await opened(stage, apps))
    assert "max_subscriptions" in stage.gateway.log


async def test_clients_that_come_all_at_once_are_reachable_or_refused(stage: Stage) -> None:
    """The server does not say which subscription it refuses, so all that were made at the same time are in doubt."""
    async with contextlib.AsyncExitStack() as sockets:
        ids = await crowd(stage, sockets)
        assert len(ids) < MAX_SUBSCRIPTIONS
        for client_id in ids:
            assert await stage.caller.refused(client_id, {"target": "echo"}) == "unknown_capability"
        await until(lambda: one_more(stage), 10)


async def test_sessions_at_the_limit_stay_when_nats_comes_back(stage: Stage) -> None:
    async with contextlib.AsyncExitStack() as apps, contextlib.AsyncExitStack() as sockets:
        app = await opened(stage, apps)
        await fill(stage, sockets)
        stage.nats.kill()
        await stage.nats.start()
        await until(lambda: answers_again(stage, app), 10)
        assert not await one_more(stage)
