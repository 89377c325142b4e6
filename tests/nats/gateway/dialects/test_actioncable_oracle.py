"""A gateway says word for word what Rails' own ActionCable says, to a client that does the same at both."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.paths import ROOT
from support.processes.child import Process
from support.processes.gateways import gateway_process, shared_gateway
from support.settings import app_token
from support.wait import until
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

PUMA = shutil.which("puma") or ""
SUBPROTOCOLS = [Subprotocol("actioncable-v1-json"), Subprotocol("actioncable-unsupported")]
IDENTIFIER = '{"channel": "AgentBridgeChannel",  "room":"\\u00e4"}'
pytestmark = pytest.mark.skipif(not PUMA, reason="puma and ruby-actioncable are not installed")

Frames = list[dict[str, Any]]


@pytest.fixture(scope="module")
def gateway(shared_nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with shared_gateway(tmp_path_factory.mktemp("gateway"), shared_nats_url) as running:
        yield running


@pytest.fixture
async def rails(tmp_path: Path) -> AsyncIterator[str]:
    """The guide's channel in Rails' server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = Process("puma", tmp_path, {"PATH": os.defpath, "LANG": "C.UTF-8"})
    file = str(ROOT / "tests/support/ruby/cable.ru")
    process.command = [PUMA, "-b", f"tcp://127.0.0.1:{port}", "-t", "1:4", "-e", "production", file]
    process.launch()
    try:
        await until(lambda: _listens(port), 60)
        yield f"ws://127.0.0.1:{port}"
    finally:
        process.end()


def _listens(port: int) -> bool:
    with socket.socket() as trying:
        return trying.connect_ex(("127.0.0.1", port)) == 0


@contextlib.asynccontextmanager
async def cable(url: str) -> AsyncIterator[ClientConnection]:
    async with connect(url, subprotocols=SUBPROTOCOLS, proxy=None) as connection:
        assert connection.subprotocol == SUBPROTOCOLS[0]
        yield connection


async def heard(connection: ClientConnection, number: int, *, pings: bool = False) -> Frames:
    """Return the next messages, without pings or with nothing else."""
    frames: Frames = []
    async with asyncio.timeout(20):
        while len(frames) < number:
            frame = json.loads(await connection.recv())
            if (frame.get("type") == "ping") == pings:
                frames.append(frame)
    return frames


async def say(connection: ClientConnection, command: str, identifier: str = IDENTIFIER, **frame: Any) -> None:
    data = {"data": json.dumps(frame)} if frame else {}
    await connection.send(json.dumps({"command": command, "identifier": identifier, **data}))


def shape(frame: dict[str, Any]) -> dict[str, Any]:
    """Return a message without what only its server can know: of `connection`, all but its type."""
    told = frame.get("message", {})
    return {**frame, "message": {"type": "connection"}} if "clientId" in told else frame


async def converse(url: str, rejected: str) -> tuple[Frames, Frames]:
    """Do what an application does; return the messages by their text, and two pings."""
    async with cable(url) as connection:
        frames = await heard(connection, 1)
        await say(connection, "subscribe")
        frames += sorted(await heard(connection, 2), key=json.dumps)
        await say(connection, "message", type="capability", capabilities=["add"], id="f1")
        frames += await heard(connection, 1)
        await say(connection, "subscribe", rejected)
        frames += await heard(connection, 1)
        return list(map(shape, frames)), await heard(connection, 2, pings=True)


async def test_frames_of_a_session_are_those_of_rails(gateway: Process, rails: str) -> None:
    url = f"ws://{urlsplit(gateway.url).netloc}/cable?token={app_token()}"
    rejected = '{"channel":"RejectingChannel"}'
    (ours, our_pings), (theirs, their_pings) = await asyncio.gather(
        converse(url, rejected), converse(f"{rails}?token=x", rejected)
    )
    assert ours == theirs
    assert [frame["type"] for frame in ours if "type" in frame] == [
        "welcome",
        "confirm_subscription",
        "reject_subscription",
    ]
    for pings in (our_pings, their_pings):
        first, second = (ping["message"] for ping in pings)
        assert pings == [{"type": "ping", "message": first}, {"type": "ping", "message": second}]
        assert isinstance(first, int)
        assert second - first in range(2, 6)


async def farewell(url: str, *, restart: Any = None) -> dict[str, Any]:
    """Return the last message before the server closes."""
    last: dict[str, Any] = {}
    async with cable(url) as connection, asyncio.timeout(20):
        if restart is not None:
            await heard(connection, 1)
            await restart(connection)
        with contextlib.suppress(ConnectionClosed):
            async for text in connection:
                last = json.loads(text)
    return last


async def test_connection_without_a_token_is_sent_away_as_by_rails(gateway: Process, rails: str) -> None:
    ours = await farewell(f"ws://{urlsplit(gateway.url).netloc}/cable")
    assert ours == await farewell(rails) == {"type": "disconnect", "reason": "unauthorized", "reconnect": False}


async def test_restart_is_announced_as_by_rails(shared_nats_url: str, tmp_path: Path, rails: str) -> None:
    async def restart_rails(connection: ClientConnection) -> None:
        await say(connection, "subscribe")
        await heard(connection, 2)
        await say(connection, "message", event="restart")

    async with gateway_process(tmp_path / "gateway", shared_nats_url) as stopped:

        async def stop_gateway(_: ClientConnection) -> None:
            stopped.signal(signal.SIGTERM)

        url = f"ws://{urlsplit(stopped.url).netloc}/cable?token={app_token()}"
        ours = await farewell(url, restart=stop_gateway)
    theirs = await farewell(f"{rails}?token=x", restart=restart_rails)
    assert ours == theirs == {"type": "disconnect", "reason": "server_restart", "reconnect": True}
