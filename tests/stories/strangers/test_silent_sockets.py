"""Sockets that open and say nothing, half of something, or take nothing: they leave no trace and hold nobody up."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.nats.nats_server import NatsServer
from support.played.app import application
from support.processes.bridge import Bridge
from support.processes.gateways import gateway_process
from support.settings import agent_token, app_token
from support.wait import until

PROBES = 2000
HALF_A_HEAD = b"GET /ws HTTP/1.1\r\nHost: localhost\r\n"
UPGRADE = (
    "GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer %s\r\n\r\n"
)
HALF_A_BODY = (
    "POST /api/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 900\r\n"
    "Authorization: Bearer %s\r\n\r\n{"
)


def connect(url: str, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection((urlsplit(url).hostname or "", urlsplit(url).port or 0), 5)
    if sent:
        connection.sendall(sent)
    return connection


@contextlib.contextmanager
def sockets(url: str, *, path: str, token: str, body: str | None = None) -> Iterator[None]:
    """Hold a port by sockets that are silent, half open, open and idle, and open but taking nothing."""
    opening = (UPGRADE % (path, token)).encode()
    sent = [b"", HALF_A_HEAD, opening, *([(body % token).encode()] if body else [])]
    with contextlib.ExitStack() as stack:
        for each in sent:
            stack.enter_context(connect(url, each))
        stalled = stack.enter_context(connect(url, opening))
        stalled.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:  # pings, whose pongs nobody takes
                stalled.send((b"\x89\xfd\0\0\0\0" + b"x" * 125) * 100)
        yield


@pytest.mark.parametrize("sent", [b"", HALF_A_HEAD], ids=["nothing", "half a head"])
async def test_probes_of_the_port_leave_no_trace(private_nats: NatsServer, tmp_path: Path, sent: bytes) -> None:
    async with gateway_process(tmp_path, private_nats.url) as gateway:
        for _ in range(PROBES):
            connect(gateway.url, sent).close()
        async with application(gateway.url) as app:
            assert app.client_id
        files = Path(f"/proc/{gateway.pid}/fd")
        await until(lambda: len(list(files.iterdir())) < 50)
        assert await gateway.terminate() == 0
        assert gateway.log.count("Traceback") == 0


async def test_gateway_ends_beside_sockets_of_all_kinds(bridge: Bridge) -> None:
    gateway = bridge.gateways[0]
    with sockets(gateway.url, path="/ws", token=app_token()):
        gateway.signal(signal.SIGTERM)
        assert await gateway.ended(5) == 0  # it waited ten seconds for each handshake
    assert "Traceback" not in gateway.log


async def test_agent_api_ends_beside_sockets_of_all_kinds(bridge: Bridge) -> None:
    api = bridge.agent_apis[0]
    with sockets(api.url, path="/api/ws", token=agent_token(), body=HALF_A_BODY):
        await asyncio.sleep(0)
        api.signal(signal.SIGTERM)
        assert await api.ended(5) == 0  # it waited ten seconds for the rest of a body
    assert "Traceback" not in api.log
