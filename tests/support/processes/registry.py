"""Registries as real processes, and what a test asks of them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from protocol import subjects
from support.processes.child import Process
from support.settings import agent_token, bearer, environment

TIMEOUT_SECONDS = 5
LOST_REQUEST_SECONDS = 1
FROZEN_IS_GONE: dict[str, Any] = {"ping_interval": 1, "max_outstanding_pings": 2}  # another server is asked then


class Announced:
    """Changes of clients, as they are announced."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    async def take(self, msg: Msg) -> None:
        """Take an announcement."""
        self.messages.append(json.loads(msg.data))

    def changes(self) -> list[tuple[str, str]]:
        """Return what was announced, in order: change and client."""
        return [(message["change"], message["clientId"]) for message in self.messages]

    def of(self, change: str) -> set[str]:
        """Return the clients of which this change was announced."""
        return {client_id for announced, client_id in self.changes() if announced == change}

    def reasons(self) -> dict[str, str]:
        """Return why clients went."""
        return {message["clientId"]: message["reason"] for message in self.messages if "reason" in message}


class Observer:
    """Somebody on NATS who asks registries and listens to what they announce."""

    def __init__(self, client: NatsClient) -> None:
        self.nats = client
        self.announced = Announced()

    async def ask(self, op: str, body: Any = None, *, token: str | None = "", tenant: str = "default") -> Any:
        """Ask `list`, `get` or `find` with an agent's token, another token, or none."""
        headers = bearer(token or agent_token()) if token is not None else None
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        subject = subjects.registry(tenant, op)
        return json.loads((await self.nats.request(subject, data, TIMEOUT_SECONDS, headers=headers)).data)

    async def listed(self, **query: Any) -> set[str]:
        """Return the ids of the clients that are listed."""
        return {record["clientId"] for record in (await self.ask("list", query))["clients"]}

    async def lists(self, *client_ids: str) -> bool:
        """Tell whether exactly these are listed; no answer is none, while the server or a registry is away.

        A request that the client writes while it reconnects may be lost: ask again soon.
        """
        try:
            async with asyncio.timeout(LOST_REQUEST_SECONDS):
                return await self.listed() == set(client_ids)
        except (nats.errors.Error, TimeoutError):
            return False

    async def refused(self, op: str, body: Any = None, **how: Any) -> str:
        """Return the code of the error that a request is answered with."""
        code: str = (await self.ask(op, body, **how))["error"]["code"]
        return code


@contextlib.asynccontextmanager
async def observer(url: str, changes: str = subjects.ALL_CLIENT_CHANGES, **options: Any) -> AsyncIterator[Observer]:
    """Listen and ask, through restarts of the server; `options` are the connection's.

    A user of NATS who may hear one tenant alone needs narrower `changes`.
    """
    client = await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0, **FROZEN_IS_GONE, **options)
    try:
        watching = Observer(client)
        await client.subscribe(changes, cb=watching.announced.take)
        await client.flush()
        yield watching
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def registries(folder: Path, url: str, count: int = 1, **settings: object) -> AsyncIterator[list[Process]]:
    """Run registries that serve."""
    running = [Process("registry", folder / f"registry-{n}", environment(url, **settings)) for n in range(count)]
    try:
        for process in running:
            await process.start()
        yield running
    finally:
        for process in running:
            process.end()
