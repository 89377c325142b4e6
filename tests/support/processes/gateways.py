"""Gateways as real processes on their own, and an agent that speaks to them over NATS."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from protocol import subjects
from support.processes.child import Process
from support.settings import agent_token, bearer, environment

TIMEOUT_SECONDS = 5
Answer = dict[str, Any]


class Agent:
    """An agent on NATS."""

    def __init__(self, client: NatsClient) -> None:
        self.nats = client

    async def call(self, client_id: str, target: str, parameters: Any = None, **more: Any) -> Answer:
        """Send a command and return its answer; `more` is `ask`'s, or joins the command."""
        how = {name: more.pop(name) for name in ("token", "tenant", "seconds") if name in more}
        return await self.ask(client_id, {"target": target, "parameters": parameters or {}, **more}, **how)

    async def ask(self, client_id: str, body: Any, **how: Any) -> Answer:
        """Send what may be an operation and return the answer's body."""
        answer: Answer = json.loads((await self.request(client_id, body, **how)).data)
        return answer

    async def refused(self, client_id: str, body: Any, **how: Any) -> str:
        """Return the code of the error that the operation is answered with, which the headers must name too."""
        reply = await self.request(client_id, body, **how)
        error = json.loads(reply.data)["error"]
        assert reply.headers is not None
        assert reply.headers["Nats-Service-Error-Code"] == error["code"]
        assert reply.headers["Nats-Service-Error"]
        return str(error["code"])

    async def request(
        self,
        client_id: str,
        body: Any,
        *,
        token: str | None = "",
        tenant: str = "default",
        seconds: float = TIMEOUT_SECONDS,
    ) -> Msg:
        """Send an operation with an agent's token, another token, or none."""
        subject = subjects.command(tenant, client_id)
        return await self.nats.request(subject, _bytes(body), seconds, headers=_headers(token))

    async def tell(self, client_id: str, body: Any, *, token: str | None = "", reply: str = "") -> None:
        """Send an operation without waiting for anything but the server."""
        await self.nats.publish(subjects.command("default", client_id), _bytes(body), reply, _headers(token))
        await self.nats.flush()


@contextlib.asynccontextmanager
async def agent(url: str) -> AsyncIterator[Agent]:
    """Connect an agent, who stays through restarts of the server."""
    client = await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0)
    try:
        yield Agent(client)
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def gateway_process(folder: Path, nats_url: str, **settings: object) -> AsyncIterator[Process]:
    """Run a gateway alone."""
    process = Process("gateway", folder, environment(nats_url, **settings))
    try:
        yield await process.start()
    finally:
        process.end()


@contextlib.contextmanager
def shared_gateway(folder: Path, nats_url: str, **settings: object) -> Iterator[Process]:
    """Run a gateway for several tests, each of which has an event loop of its own."""
    process = Process("gateway", folder, environment(nats_url, **settings))
    try:
        yield asyncio.run(process.start())
    finally:
        process.end()


def _bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def _headers(token: str | None) -> dict[str, str] | None:
    return None if token is None else bearer(token or agent_token())
