"""An agent API inside the test's process, and what surrounds it: records in the bucket, gateways that answer."""

import asyncio
import contextlib
import inspect
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import nats
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.js.api import KeyValueConfig, StorageType
from nats.js.kv import KeyValue

from agent_api.service import AgentApi, serving
from agent_api.settings import ApiSettings
from protocol.runtime.nats.connection import connect
from protocol.subjects import CLIENTS_BUCKET, client_key
from protocol.subjects import command as command_subject
from protocol.subjects import gateway as gateway_subject
from support.nats import clients_bucket
from support.settings import agent_token, bearer, settings_for
from support.wait import until

Answer = Callable[[dict[str, Any]], Any]
Message = dict[str, Any]
GATEWAY = "gw-1"


class Fault(Exception):
    """What a simulated gateway answers with an error: code and message."""


class World:
    """What surrounds an agent API: a registry's records and a gateway's sessions, written by the test itself."""

    def __init__(self, client: NatsClient) -> None:
        self.nats = client
        self.messages: list[Message] = []
        self.headers: list[dict[str, str]] = []
        self._records: KeyValue | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def make_bucket(self) -> None:
        """Make the bucket, in memory: a file store made right after its namesake's end finds remains of it."""
        config = KeyValueConfig(bucket=CLIENTS_BUCKET, storage=StorageType.MEMORY)
        self._records = await self.nats.jetstream().create_key_value(config)

    async def put(self, client_id: str, capabilities: list[Any] | None = None, **fields: Any) -> None:
        """Store a client's record: `put("c1", [function("f")], principal="ann", app={"name": "todo"})`."""
        await clients_bucket.put(
            self._bucket,
            clients_bucket.record(client_id, capabilities=json.dumps(capabilities or []).encode(), **fields),
        )

    async def remove(self, client_id: str, tenant: str = "default") -> None:
        """Remove a client's record."""
        await self._bucket.purge(client_key(tenant, client_id))

    async def hold(self, client_id: str, answer: Answer, tenant: str = "default") -> None:
        """Answer the commands of a client: with what `answer` returns for one, or the `Fault` that it raises."""

        async def take(msg: Msg) -> None:
            task = asyncio.get_running_loop().create_task(self._take(msg, client_id, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        await self.nats.subscribe(command_subject(tenant, client_id), cb=take)
        await self.nats.flush()

    async def hold_plainly(self, client_id: str, reply: bytes) -> None:
        """Answer whatever comes for a client with the same bytes."""

        async def take(msg: Msg) -> None:
            await msg.respond(reply)

        await self.nats.subscribe(command_subject("default", client_id), cb=take)
        await self.nats.flush()

    async def serve_disconnect(self, answer: Callable[[Message], Message], gateway_id: str = GATEWAY) -> None:
        """Answer an administrator's disconnects as a gateway."""

        async def take(msg: Msg) -> None:
            self._note(msg)
            reply = answer(json.loads(msg.data))
            headers = {"Nats-Service-Error-Code": reply["error"]["code"]} if "error" in reply else None
            await self.nats.publish(msg.reply, json.dumps(reply).encode(), headers=headers)

        await self.nats.subscribe(gateway_subject(gateway_id, "disconnect"), cb=take)
        await self.nats.flush()

    def received(self, op: str = "call") -> list[Message]:
        """Return the messages with this `op` so far."""
        return [message for message in self.messages if message.get("op", "call") == op]

    async def close(self) -> None:
        """Leave."""
        for task in self._tasks:
            task.cancel()
        await self.nats.close()

    @property
    def _bucket(self) -> KeyValue:
        assert self._records is not None, "make_bucket() first"
        return self._records

    def _note(self, msg: Msg) -> Message:
        message: Message = json.loads(msg.data)
        self.messages.append(message)
        self.headers.append(dict(msg.headers or {}))
        return message

    async def _take(self, msg: Msg, client_id: str, answer: Answer) -> None:
        message = self._note(msg)
        if message["op"] == "probe":
            await msg.respond(json.dumps({"inFlight": message["requestIds"], "outcomes": [], "unknown": []}).encode())
        elif message["op"] == "call":
            body = {"requestId": message["requestId"], "clientId": client_id, "durationMs": 1}
            await msg.respond(json.dumps(body | await _outcome(answer, message)).encode())


async def _outcome(answer: Answer, message: Message) -> Message:
    try:
        result = answer(message)
        return {"status": "success", "result": await result if inspect.isawaitable(result) else result}
    except Fault as fault:
        code, text = fault.args
        return {"status": "error", "error": {"code": code, "message": text, "retryable": False}}


def function(name: str, **fields: Any) -> Message:
    """Return a function as a capability."""
    return {"type": "function", "name": name, **fields}


async def never(message: Message) -> None:
    """Leave a command without an answer."""
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def world_at(nats_url: str, *, bucket: bool = True) -> AsyncIterator[World]:
    """Give what surrounds agent APIs at a NATS server."""
    world = World(await nats.connect(nats_url))
    try:
        if bucket:
            await world.make_bucket()
        yield world
    finally:
        await world.close()


class RunningApi:
    """An agent API inside this process."""

    def __init__(self, api: AgentApi, stop: asyncio.Event, life: asyncio.Task[None]) -> None:
        self.url, self.sockets, self.hub, self.admission, self.bounds = api
        self._stop = stop
        self._life = life

    async def drain(self) -> None:
        """End it as a signal would; return when it has ended."""
        self._stop.set()
        await self._life


@contextlib.asynccontextmanager
async def running_agent_api(nats_url: str, **settings: object) -> AsyncIterator[RunningApi]:
    """Run an agent API inside this process, and drain it at the end."""
    loop = asyncio.get_running_loop()
    serves: asyncio.Future[AgentApi] = loop.create_future()
    stop = asyncio.Event()
    # The life of the API is one task, because fixtures begin and end in different ones.
    life = loop.create_task(_live(settings_for(ApiSettings, nats_url, **settings), serves, stop))
    first: list[asyncio.Future[Any]] = [life, serves]
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    if not serves.done():
        life.result()
    running = RunningApi(serves.result(), stop, life)
    try:
        yield running
    finally:
        await running.drain()


async def _live(settings: ApiSettings, serves: asyncio.Future[AgentApi], stop: asyncio.Event) -> None:
    async with connect(settings, "agent_api", "api") as connection:
        try:
            async with asyncio.TaskGroup() as tasks:
                async with serving(settings, connection, tasks) as api:
                    serves.set_result(api)
                    await stop.wait()
                raise _Over
        except* _Over:
            pass


class _Over(Exception):
    """Ends the tasks of an agent API."""


@contextlib.asynccontextmanager
async def http_client(api: RunningApi, token: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """Give an HTTP client of an agent, with a token unless it is empty."""
    token = agent_token() if token is None else token
    headers = bearer(token) if token else {}
    async with httpx.AsyncClient(base_url=api.url, headers=headers, timeout=10, trust_env=False) as client:
        yield client


async def listed(client: httpx.AsyncClient, *client_ids: str) -> None:
    """Wait until exactly these clients are listed for the agent."""

    async def lists() -> bool:
        response = await client.get("/api/capabilities")
        return response.status_code == 200 and set(response.json()) == set(client_ids)

    await until(lists)
