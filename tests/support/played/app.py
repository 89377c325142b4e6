"""A simulated application: real WebSocket, the frames of an application, handlers given by the test."""

import asyncio
import contextlib
import inspect
import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from support.settings import app_token
from support.wait import until

Handler = Callable[[dict[str, Any]], Any]
Frame = dict[str, Any]


class AppFault(Exception):
    """What a handler raises to answer a command with an error; the arguments are message and code."""


async def never(parameters: dict[str, Any]) -> None:
    """Handle a command without ever answering it."""
    await asyncio.Event().wait()


class App:
    """A connected application. `handlers` are called with the command's parameters, by target."""

    def __init__(self, socket: ClientConnection, handlers: dict[str, Handler]) -> None:
        self.socket = socket
        self.handlers = handlers
        self.frames: list[Frame] = []
        self.client_id = ""
        self.close_code: int | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ids = itertools.count(1)

    async def send(self, frame: Frame | str | bytes) -> None:
        """Send a frame; text and bytes go out as they are."""
        await self.socket.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    async def acknowledged(self, frame: Frame) -> Frame:
        """Send a frame with an id and return the `ack` or `error` that answers it."""
        ident = f"frame-{next(self._ids)}"
        await self.send({**frame, "id": ident})
        return await self.received(id=ident)

    async def register(self, capabilities: list[Any], **more: Any) -> None:
        """Register capabilities and wait for the acknowledgement."""
        answer = await self.acknowledged({"type": "capability", "capabilities": capabilities, **more})
        assert answer["type"] == "ack", answer

    async def received(self, seconds: float = 5, **fields: Any) -> Frame:
        """Return the first frame with these fields: `received(type="command", target="add")`."""
        return await until(lambda: next(iter(self.all_received(**fields)), None) or {}, seconds)

    def all_received(self, **fields: Any) -> list[Frame]:
        """Return the frames so far with these fields."""
        return [frame for frame in self.frames if fields.items() <= frame.items()]

    async def closed(self, seconds: float = 5) -> int:
        """Wait for the socket's end and return its close code."""
        return await until(lambda: self.close_code, seconds) or 0

    async def commands(self) -> list[Frame]:
        """Return the commands so far. Frames keep their order, so all that the gateway has sent are among them."""
        pongs = len(self.all_received(type="pong"))
        if self.close_code is None:
            await self.send({"type": "ping"})
            await until(lambda: self.close_code or len(self.all_received(type="pong")) > pongs)
        return self.all_received(type="command")

    async def read(self, tasks: asyncio.TaskGroup) -> None:
        """Read until the socket closes, answering commands."""
        with contextlib.suppress(ConnectionClosed):
            async for message in self.socket:
                self._accept(json.loads(message), tasks)
        self.close_code = self.socket.close_code or 1006

    def _accept(self, frame: Frame, tasks: asyncio.TaskGroup) -> None:
        self.frames.append(frame)
        match frame:
            case {"type": "connection", "clientId": str(client_id)}:
                self.client_id = client_id
            case {"type": "command", "requestId": str(request_id)}:
                self._running[request_id] = tasks.create_task(self._answer(frame))
            case {"type": "cancel", "requestId": str(request_id)} if request_id in self._running:
                self._running.pop(request_id).cancel()

    async def _answer(self, command: Frame) -> None:
        request_id = command["requestId"]
        try:
            result = self.handlers[command["target"]](command["parameters"])
            answer = {"status": "success", "result": await result if inspect.isawaitable(result) else result}
        except AppFault as fault:
            answer = {"status": "error", "error": dict(zip(("message", "code"), fault.args, strict=False))}
        with contextlib.suppress(ConnectionClosed):
            await self.send({"type": "response", "requestId": request_id, **answer})


@contextlib.asynccontextmanager
async def application(
    gateway_url: str,
    handlers: dict[str, Handler] | None = None,
    *,
    token: str | None = None,
    capabilities: list[Any] | None = None,
    **more: Any,
) -> AsyncIterator[App]:
    """Connect an application that offers its handlers (or `capabilities`), and close it at the end.

    `more` joins the capability frame: `app={"name": "todo"}`, `metadata={...}`.
    """
    handlers = handlers or {}
    offered = list(handlers) if capabilities is None else capabilities
    async with socket_of(gateway_url, token or app_token()) as socket, asyncio.TaskGroup() as tasks:
        app = App(socket, handlers)
        reader = tasks.create_task(app.read(tasks))
        try:
            await app.received(type="connection")
            if offered:
                await app.register(offered, **more)
            yield app
        finally:
            for task in app._running.values():
                task.cancel()
            await socket.close()
            await reader


def socket_of(gateway_url: str, token: str | None, path: str = "/ws", **options: Any) -> connect:
    """Open a WebSocket to a gateway with its token in the Authorization header."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return connect(ws_url(gateway_url) + path, additional_headers=headers, proxy=None, **options)


def ws_url(url: str) -> str:
    """Return the WebSocket URL of a gateway, without a path."""
    scheme, _, rest = url.partition("://")
    return f"{ {'http': 'ws', 'https': 'wss'}.get(scheme, scheme) }://{rest.split('/')[0]}"
