"""NATS over WebSocket, as docs/nats.md switches it on: the same logins, from exactly the origins that are named."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from conftest import MakeNats
from support.examples import Examples
from support.nats.line import connect_line
from support.nats.nats_server import free_port
from support.nats.template import Template
from support.played.callout import logins
from support.settings import agent_token, app_token
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin

from protocol.runtime.nats import agent_login

OPTION = Examples().take("docs/nats.md", "allowed_origins").code
LISTEN = "0.0.0.0:8443"
ORIGIN = "https://agents.example.com"


@pytest.fixture
async def url(make_nats: MakeNats) -> AsyncIterator[str]:
    """A server of the template with the option of the documentation, on a free port of loopback."""
    template, address = Template(), f"127.0.0.1:{free_port()}"
    assert OPTION.count(LISTEN) == OPTION.count(ORIGIN) == 1
    server = make_nats(f"{template.config}\n{OPTION.replace(LISTEN, address)}")
    await server.start()
    async with logins(template, server.url):
        yield f"ws://{address}"


async def said(url: str, token: str, *commands: str, origin: str | None = ORIGIN) -> str:
    """Log in, send commands, and return what the server says until the last of them has been heard."""
    told = ""
    async with connect(url, origin=Origin(origin) if origin else None, proxy=None) as socket, asyncio.timeout(10):
        lines = [connect_line(auth_token=token), *commands, "PING"]
        await socket.send("".join(f"{line}\r\n" for line in lines).encode())
        try:
            while "PONG" not in told:
                part = await socket.recv(decode=False)
                told += part.decode()
        except ConnectionClosed:
            assert "-ERR" in told
    return told


@pytest.mark.parametrize("origin", [ORIGIN, None])
async def test_agent_logs_in_by_its_token_with_its_own_subjects(url: str, origin: str | None) -> None:
    inbox = agent_login.inbox_prefix("default", "agent-1")
    own = (f"SUB {inbox}.> 1", "SUB agentbridge.default.event.> 2")
    assert "-ERR" not in await said(url, agent_token(), *own, origin=origin)
    assert "Permissions Violation" in await said(url, agent_token(), "SUB agentbridge.acme.event.> 1", origin=origin)


async def test_refused_token_is_refused_here_too(url: str) -> None:
    assert "Authorization Violation" in await said(url, app_token())


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.com",
        "http://agents.example.com",
        "https://agents.example.com:8443",
        "https://agents.example.com.evil.com",
        "null",
    ],
)
async def test_page_of_another_origin_is_refused(url: str, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await said(url, agent_token(), origin=origin)
    assert refused.value.response.status_code == 403
