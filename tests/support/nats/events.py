"""The stream of events as a test has it: a stream made like the registry's, messages in it, and readers over HTTP."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx
import msgspec
from nats.aio.client import Client as NatsClient

from protocol import codec, subjects
from protocol.messages import ClientChange, EventMessage
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams.consumer import OrderedConsumer
from protocol.runtime.streams.stores import events_of
from support.nats.stores import make_store
from support.wait import until

AT = "2026-01-01T00:00:00.000Z"


class Said(NamedTuple):
    """One dispatched server-sent event; `id` is what a reader would resume from after it."""

    event: str
    data: Any
    id: str


class Stream:
    """What one reader gets, taken apart as the HTML standard says (section 9.2.6)."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.last_id = ""
        self.comments = 0
        self._said = asyncio.Queue[Said | None]()

    async def read(self) -> None:
        """Read until the stream ends."""
        event, data = "", list[str]()
        async for line in self.response.aiter_lines():
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if data:
                    self._said.put_nowait(Said(event or "message", json.loads("\n".join(data)), self.last_id))
                event, data = "", []
            elif not name:
                self.comments += 1
            elif name == "id":
                self.last_id = value
            elif name == "event":
                event = value
            elif name == "data":
                data.append(value)
        self._said.put_nowait(None)

    async def next(self, seconds: float = 5) -> Said:
        """Return what is said next; the stream must not end before."""
        async with asyncio.timeout(seconds):
            said = await self._said.get()
        assert said is not None, "the stream has ended"
        return said

    async def take(self, number: int, seconds: float = 5) -> list[Said]:
        """Return so many."""
        return [await self.next(seconds) for _ in range(number)]

    async def ended(self, seconds: float = 5) -> Said:
        """Return the last word of a stream that ends."""
        said = await self.next(seconds)
        async with asyncio.timeout(seconds):
            assert await self._said.get() is None
        return said

    async def reaches(self, sequence: int) -> None:
        """Wait until this reader is past a sequence of the stream; heartbeats tell it where what comes is hidden."""
        await until(lambda: int(self.last_id.partition("-")[2] or -1) >= sequence)

    def take_waiting(self) -> list[Said]:
        """Return what has come by now."""
        said = [self._said.get_nowait() for _ in range(self.waiting)]
        return [each for each in said if each is not None]

    @property
    def waiting(self) -> int:
        """How many have come and were not taken."""
        return self._said.qsize()


@contextlib.asynccontextmanager
async def reading(http: httpx.AsyncClient, last_id: str = "", **query: Any) -> AsyncIterator[Stream]:
    """Read events: `reading(http, event=["todo.*"], since=id)`; it begins before this returns."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with http.stream("GET", "/api/events", params=query, headers=headers, timeout=None) as response:
        if response.status_code != httpx.codes.OK:
            await response.aread()
            raise AssertionError(response.text)
        stream = Stream(response)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(stream.read())
            await until(lambda: stream.last_id)
            try:
                yield stream
            finally:
                task.cancel()


async def make_stream(client: NatsClient, tenant: str = "default", **more: Any) -> None:
    """Make the stream of a tenant's events as a registry does."""
    await make_store(client, events_of(tenant), **more)


async def store(client: NatsClient, subject: str, body: bytes) -> int:
    """Store a message, and return its sequence."""
    return (await client.jetstream().publish(subject, body)).seq


async def tell(
    client: NatsClient,
    name: str = "todo.added",
    data: Any = None,
    *,
    client_id: str = "c1",
    tenant: str = "default",
    user: str = "ann",
    app: str = "todo",
) -> int:
    """Store an application's event, and return its sequence."""
    return await store(client, subjects.event(tenant, client_id, name), event_body(name, data, client_id, user, app))


def event_body(name: str, data: Any, client_id: str = "c1", user: str = "ann", app: str = "todo") -> bytes:
    """Return an application's event as it is stored."""
    return codec.encode(
        EventMessage(event=name, client_id=client_id, user=user, app=app, at=AT, data=msgspec.Raw(codec.encode(data)))
    )


async def change(
    client: NatsClient,
    what: str = "connected",
    *,
    client_id: str = "c1",
    tenant: str = "default",
    user: str = "ann",
    app: str = "todo",
) -> int:
    """Store a change of a client, and return its sequence."""
    message = ClientChange(change=what, client_id=client_id, user=user, app=app, at=AT, revision=1)
    return await store(client, subjects.client_change(tenant, client_id, what), codec.encode(message))


def data_of(said: list[Said]) -> list[Any]:
    """Return the applications' data of events."""
    return [each.data["data"] for each in said]


class Brittle(OrderedConsumer):
    """A consumer that breaks as soon as it is made, without an error."""

    made = 0

    async def wait(self, seconds: float) -> bool:
        """Say that its life has ended."""
        Brittle.made += 1
        return True


async def made_meanwhile(connection: Connection) -> int:
    """Count the brittle consumers that are made in the time of many round trips."""
    Brittle.made = 0
    for _ in range(40):
        await connection.flush()
    return Brittle.made
