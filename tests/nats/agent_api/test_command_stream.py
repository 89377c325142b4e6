"""Streams of progress over real sockets, with a gateway that the test plays and that tells more than one would."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from support.played.agent_api import RunningApi, World, http_client
from support.settings import agent_token
from support.wait import until

from agent_api.routes.command_stream import MAX_WAITING, MAX_WAITING_BYTES

WORDS = 1500
DATA = "x" * 10_000
RECEIVE_BYTES = 64 * 1024


@contextlib.asynccontextmanager
async def stalled_stream(api: RunningApi) -> AsyncIterator[socket.socket]:
    """Ask for a stream and read nothing of it."""
    body = json.dumps({"clientId": "c1", "command": {"target": "f"}})
    head = [
        "POST /api/command HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {agent_token()}",
        "Content-Type: application/json",
        "Accept: text/event-stream",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        connection.setblocking(False)
        await loop.sock_connect(connection, (urlsplit(api.url).hostname, urlsplit(api.url).port))
        await loop.sock_sendall(connection, "\r\n".join([*head, "", body]).encode())
        yield connection


async def read_all(connection: socket.socket) -> bytes:
    loop, read = asyncio.get_running_loop(), b""
    while chunk := await loop.sock_recv(connection, RECEIVE_BYTES):
        read += chunk
    return read


async def test_stalled_reader_harms_nobody_and_misses_all_but_the_newest(world: World, api: RunningApi) -> None:
    told, answer = asyncio.Event(), asyncio.Event()

    async def tell(message: dict[str, Any]) -> str:
        to = world.headers[-1]["Agentbridge-Progress"]
        for seq in range(1, WORDS + 1):
            word = {"requestId": message["requestId"], "seq": seq, "progress": seq, "data": DATA}
            await world.nats.publish(to, json.dumps(word).encode())
        await world.nats.flush()
        told.set()
        await answer.wait()
        return "done"

    await world.hold("c1", tell)
    await world.hold("c2", lambda message: "quick")
    async with stalled_stream(api) as stalled, http_client(api) as other, asyncio.timeout(20):
        await told.wait()
        quick = await other.post("/api/command", json={"clientId": "c2", "command": {"target": "f"}})
        answer.set()
        text = (await read_all(stalled)).decode()

    assert quick.json()["result"] == "quick"
    seqs = [int(part.partition(",")[0]) for part in text.split('"seq":')[1:]]
    assert seqs == sorted(set(seqs))
    assert len(seqs) < WORDS - 100, "nothing was left out, so something has grown"
    held = min(MAX_WAITING, MAX_WAITING_BYTES // len(json.dumps(DATA)))
    assert seqs[-held:] == list(range(WORDS - held + 1, WORDS + 1))
    assert '"result":"done"' in text.rpartition("event: response")[2]


async def test_stalled_reader_who_leaves_cancels_the_command(world: World, api: RunningApi) -> None:
    await world.hold("c1", lambda message: asyncio.Event().wait())
    async with stalled_stream(api):
        await until(lambda: world.received("call"))
    await until(lambda: world.received("cancel"))
