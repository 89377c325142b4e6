"""An agent on its WebSocket: frames sent, and all that came back."""

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from support.played.app import ws_url
from support.settings import agent_token
from support.wait import until

Frame = dict[str, Any]


class AgentSocket:
    """A connected agent."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[Frame] = []
        self.close_code: int | None = None
        self.close_reason = ""
        self._ids = itertools.count(1)

    async def send(self, frame: Frame | str | bytes) -> None:
        """Send a frame; text and bytes go out as they are."""
        await self.socket.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    async def command(self, client_id: str | None, target: str, parameters: Any = None, **more: Any) -> str:
        """Send a command and return its id; `more` joins the frame."""
        ident = more.pop("id", None) or f"c{next(self._ids)}"
        command = {"target": target, "parameters": parameters or {}, **more.pop("command", {})}
        frame = {"type": "command", "id": ident, "clientId": client_id, "command": command, **more}
        await self.send({name: value for name, value in frame.items() if value is not None})
        return ident

    async def call(self, client_id: str | None, target: str, parameters: Any = None, **more: Any) -> Frame:
        """Send a command and return its response, or the error that refused it."""
        return await self.answer(await self.command(client_id, target, parameters, **more))

    async def answer(self, ident: str, seconds: float = 10) -> Frame:
        """Return the response to a command, or the error that refused it."""
        return await until(lambda: next(iter(self.answers(ident)), {}), seconds)

    def answers(self, ident: str) -> list[Frame]:
        """Return all responses and errors with this id so far."""
        return [frame for frame in self.frames if frame["type"] in ("response", "error") and frame.get("id") == ident]

    async def received(self, seconds: float = 5, **fields: Any) -> Frame:
        """Return the first frame with these fields: `received(type="pong")`."""
        return await until(lambda: next(iter(self.all_received(**fields)), None) or {}, seconds)

    def all_received(self, **fields: Any) -> list[Frame]:
        """Return the frames so far with these fields."""
        return [frame for frame in self.frames if fields.items() <= frame.items()]

    async def closed(self, seconds: float = 5) -> int:
        """Wait for the socket's end and return its close code."""
        return await until(lambda: self.close_code, seconds) or 0

    async def read(self) -> None:
        """Read until the socket closes."""
        with contextlib.suppress(ConnectionClosed):
            async for message in self.socket:
                self.frames.append(json.loads(message))
        self.close_reason = self.socket.close_reason or ""
        self.close_code = self.socket.close_code or 1006


@contextlib.asynccontextmanager
async def agent_socket(api_url: str, token: str | None = "", **options: Any) -> AsyncIterator[AgentSocket]:
    """Open an agent's WebSocket with an agent's token, another token, or none, and close it at the end."""
    token = agent_token() if token == "" else token
    async with opened(api_url, token, **options) as socket, asyncio.TaskGroup() as tasks:
        agent = AgentSocket(socket)
        tasks.create_task(agent.read())
        try:
            yield agent
        finally:
            await socket.close()


def opened(api_url: str, token: str | None, path: str = "/api/ws", **options: Any) -> connect:
    """Open a WebSocket to an agent API with its token in the Authorization header; nobody reads it yet."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    headers |= options.pop("headers", {})
    return connect(ws_url(api_url) + path, additional_headers=headers, proxy=None, **options)


def narrow_socket(api_url: str) -> connect:
    """Open a WebSocket of which the system takes little before it is read."""
    address = urlsplit(api_url)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((address.hostname, address.port))
    sock.setblocking(False)
    return opened(api_url, agent_token(), sock=sock, max_queue=1, ping_interval=None, close_timeout=0.1)
