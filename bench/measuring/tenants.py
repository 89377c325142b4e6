"""Tenants as a bench makes them: each with an application, an event that is stored and a command under a key."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import nats
import nats.errors
from nats.aio.client import Client as NatsClient
from websockets.asyncio.client import ClientConnection, connect

from measuring import report
from protocol.runtime.tokens import mint

AT_ONCE = 16
TOKEN_SECONDS = 86_400
ANSWER_SECONDS = 60
STORES_OF_A_TENANT = 3
OK = 200


class Place(NamedTuple):
    """Where the bridge is, and the secret of its tokens."""

    gateway_port: int
    api_port: int
    nats_url: str
    secret: str


class Tenant:
    """One tenant's application and agent."""

    def __init__(self, place: Place, name: str) -> None:
        self.name = name
        self.refused = 0
        self._place = place
        self._agent = mint(place.secret, "agent", "agent", TOKEN_SECONDS, tenant=name)
        self._app = mint(place.secret, "user", "app", TOKEN_SECONDS, tenant=name)
        self._socket: ClientConnection | None = None
        self._client_id = ""
        self._answering: asyncio.Task[None] | None = None
        self._acknowledged = asyncio.Event()

    async def come(self, tasks: asyncio.TaskGroup) -> float:
        """Connect, store an event, and have a command under a key executed; return the seconds that these took."""
        url = f"ws://127.0.0.1:{self._place.gateway_port}/ws?token={self._app}"
        self._socket = await connect(url, compression=None, ping_interval=None)
        self._client_id = json.loads(await self._socket.recv())["clientId"]
        await self._socket.send(json.dumps({"type": "capability", "capabilities": ["f"], "id": "r"}))
        self._answering = tasks.create_task(self._answer(self._socket), name=f"application of {self.name}")
        began = time.perf_counter()
        await self.store_an_event("e0")
        await self.command("k0")
        return time.perf_counter() - began

    async def store_an_event(self, ident: str) -> None:
        """Send an event with an id and wait for its acknowledgement, again if it is refused."""
        assert self._socket is not None
        self._acknowledged.clear()
        async with asyncio.timeout(ANSWER_SECONDS):
            while not self._acknowledged.is_set():
                await self._socket.send(json.dumps({"type": "event", "event": "e", "data": 1, "id": ident}))
                try:
                    async with asyncio.timeout(6):
                        await self._acknowledged.wait()
                except TimeoutError:
                    continue

    async def command(self, key: str) -> None:
        """Call the application under a key."""
        body = {"clientId": self._client_id, "command": {"target": "f", "idempotencyKey": key}}
        async with asyncio.timeout(ANSWER_SECONDS):
            while (answer := await self._post("/api/command", body))[0] != OK:
                report.progress(f"{self.name}: {answer[1].decode(errors='replace')}")
                self.refused += 1
                await asyncio.sleep(0.5)

    async def read(self) -> asyncio.StreamReader:
        """Read the tenant's events, until the connection ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._place.api_port)
        head = f"GET /api/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._agent}\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(ANSWER_SECONDS):
            await reader.readuntil(b"id: ")
        return reader

    async def leave(self) -> None:
        """Close the socket."""
        if self._answering is not None and self._socket is not None:
            self._answering.cancel()
            await self._socket.close()

    async def _answer(self, socket: ClientConnection) -> None:
        async for text in socket:
            frame: dict[str, Any] = json.loads(text)
            if frame["type"] == "command":
                answer = {"type": "response", "requestId": frame["requestId"], "status": "success", "result": 1}
                await socket.send(json.dumps(answer))
            elif frame["type"] == "ack" and frame["id"] != "r":
                self._acknowledged.set()

    async def _post(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        data = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._place.api_port)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._agent}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        async with asyncio.timeout(ANSWER_SECONDS):
            status = int((await reader.readline()).split()[1])
            said = await reader.read()
        writer.close()
        return status, said.rpartition(b"\r\n\r\n")[2]


async def for_all(tenants: list[Tenant], work: Callable[[Tenant], Awaitable[Any]]) -> list[Any]:
    """Do something for each tenant, 16 at a time; return what it gave."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(tenant: Tenant) -> Any:
        async with slots:
            return await work(tenant)

    return list(await asyncio.gather(*(one(tenant) for tenant in tenants)))


async def stores(client: NatsClient) -> int:
    """Return how many stores of tenants there are."""
    body = json.dumps({"subject": "agentbridge.*.*.>"}).encode()
    answer = json.loads((await client.request("$JS.API.STREAM.NAMES", body, timeout=10)).data)
    return int(answer.get("total", 0))


async def whole(url: str, count: int, seconds: float) -> None:
    """Wait until NATS has so many stores again."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                client = await nats.connect(url, allow_reconnect=False, connect_timeout=1)
                try:
                    if await stores(client) >= count:
                        return
                finally:
                    await client.close()
            except (nats.errors.Error, OSError, TimeoutError):
                pass
            await asyncio.sleep(0.1)
