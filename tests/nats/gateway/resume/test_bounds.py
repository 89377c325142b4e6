"""What sessions without clients may take, and who gives way when that is all taken."""

import json
from collections.abc import AsyncIterator

import pytest
from nats.errors import NoRespondersError
from support.nats.nats_server import NatsServer
from support.played.app import socket_of
from support.played.running_gateway import running_gateway
from support.processes.gateways import Agent, agent
from support.settings import app_token
from support.wait import until
from websockets.asyncio.client import ClientConnection

from gateway.sessions import claims, resumable

PLACES = 4


@pytest.fixture
async def gateway_url(private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """A gateway with room for four sessions without clients, and for no message while a session moves."""
    monkeypatch.setattr(resumable, "MAX_BYTES", PLACES * (resumable.SESSION_BYTES + 2) + 10)
    monkeypatch.setattr(claims, "MAX_KEPT_BYTES", 1)
    async with running_gateway(private_nats.url) as url:
        yield url


@pytest.fixture
async def caller(private_nats: NatsServer) -> AsyncIterator[Agent]:
    async with agent(private_nats.url) as connected:
        yield connected


async def connected(url: str, sub: str) -> tuple[ClientConnection, str]:
    socket = await socket_of(url, app_token(sub), "/ws?resume=")
    return socket, str(json.loads(await socket.recv())["clientId"])


async def away(url: str, sub: str) -> str:
    """Connect, lose the connection, and return the id of the session."""
    socket, client_id = await connected(url, sub)
    socket.transport.abort()
    return client_id


async def code(caller: Agent, client_id: str) -> str:
    """Return what becomes of a command: `unavailable` while the session waits, `client_not_found` if it has ended."""
    try:
        answer = await caller.call(client_id, "any")
    except NoRespondersError:  # nobody is subscribed any more
        return "client_not_found"
    return str(answer["error"]["code"])


async def test_user_with_most_sessions_gives_way_to_another(gateway_url: str, caller: Agent) -> None:
    hoarded = []
    for _ in range(PLACES):
        hoarded.append(await away(gateway_url, "hoarder"))
        await until(lambda: _is(caller, hoarded[-1], "unavailable"))
    other = await away(gateway_url, "neighbour")
    await until(lambda: _is(caller, other, "unavailable"))
    await until(lambda: _has_ended(caller, hoarded[-1]))
    assert [await code(caller, each) for each in hoarded[:-1]] == ["unavailable"] * (PLACES - 1)


async def test_user_cannot_have_more_than_all(gateway_url: str, caller: Agent) -> None:
    hoarded = []
    for _ in range(PLACES):
        hoarded.append(await away(gateway_url, "hoarder"))
        await until(lambda: _is(caller, hoarded[-1], "unavailable"))
    last = await away(gateway_url, "hoarder")
    await until(lambda: _has_ended(caller, last))
    assert [await code(caller, each) for each in hoarded] == ["unavailable"] * PLACES


async def _is(caller: Agent, client_id: str, wanted: str) -> bool:
    return await code(caller, client_id) == wanted


async def _has_ended(caller: Agent, client_id: str) -> bool:
    """Tell whether nobody listens for the commands of a session any more; the asking counts as no stranger's."""
    try:
        await caller.call(client_id, "any")
    except NoRespondersError:
        return True
    return False
