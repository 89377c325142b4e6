"""A simulated application that resumes its session: at the gateways in turn, as the JavaScript library does."""

import asyncio
import contextlib
import inspect
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, WebSocketException

from support.load.load import Listener
from support.played.app import AppFault, Frame, Handler, socket_of
from support.settings import app_token
from support.wait import until

COMEBACK_SECONDS = 0.05
FINAL = {1000, 1008, 4001, 4009}


class ResumingApp:
    """An application with one session, and what it knows of the commands that it was sent."""

    def __init__(
        self, gateways: Sequence[Listener], handlers: dict[str, Handler], *, token: str | None = None, first: int = 0
    ) -> None:
        self.gateways = gateways
        self.handlers = handlers
        self.connections: list[Frame] = []
        self.frames: list[Frame] = []
        self.close_codes: list[int] = []
        self.socket: ClientConnection | None = None
        self.resume_token = ""
        self.wants_back = True
        self.returns = asyncio.Event()
        self.returns.set()
        self.on_connected: Callable[[], None] = lambda: None
        self._token = token or app_token()
        self._turn = first
        self.answers: dict[str, Frame | None] = {}
        self._ids = itertools.count(1)

    @property
    def client_id(self) -> str:
        """The id of the session."""
        return str(self.connections[-1]["clientId"])

    async def live(self, tasks: asyncio.TaskGroup) -> None:
        """Stay connected until the end is final."""
        while self.wants_back:
            gateway = self.gateways[self._turn % len(self.gateways)]
            self._turn += 1
            with contextlib.suppress(OSError, WebSocketException, TimeoutError):
                async with socket_of(gateway.url, self._token, f"/ws?resume={self.resume_token}") as socket:
                    await self._read(socket, tasks)
                self.socket = None
                self.close_codes.append(socket.close_code or 1006)
                self.wants_back = self.wants_back and self.close_codes[-1] not in FINAL
            await asyncio.sleep(COMEBACK_SECONDS)
            await self.returns.wait()

    async def send(self, frame: Frame) -> None:
        """Send a frame, if there is a connection."""
        if self.socket is not None:
            with contextlib.suppress(ConnectionClosed):
                await self.socket.send(json.dumps(frame))

    async def received(self, seconds: float = 5, **fields: Any) -> Frame:
        """Return the first frame with these fields."""
        return await until(lambda: next(iter(self.all_received(**fields)), None) or {}, seconds)

    def all_received(self, **fields: Any) -> list[Frame]:
        """Return the frames so far with these fields."""
        return [frame for frame in self.frames if fields.items() <= frame.items()]

    async def connected(self, count: int = 1, seconds: float = 5) -> Frame:
        """Wait for the connection of this number, and the `ack` if it had to register; return its first frame."""
        await until(lambda: len(self.connections) >= count, seconds)
        frame = self.connections[count - 1]
        if not frame.get("resumed"):
            await self.received(seconds, type="ack", id=f"list-{count}")
        return frame

    def cut(self) -> None:
        """Lose the connection, without a word to the gateway."""
        assert self.socket is not None
        self.socket.transport.abort()

    async def _read(self, socket: ClientConnection, tasks: asyncio.TaskGroup) -> None:
        self.socket = socket
        with contextlib.suppress(ConnectionClosed):
            async for message in socket:
                await self._accept(json.loads(message), tasks)

    async def _accept(self, frame: Frame, tasks: asyncio.TaskGroup) -> None:
        self.frames.append(frame)
        match frame:
            case {"type": "connection"}:
                self.connections.append(frame)
                self.resume_token = frame["resumeToken"]
                await self._begin(frame)
            case {"type": "command", "requestId": str(request_id)}:
                self.answers[request_id] = None
                tasks.create_task(self._answer(frame))

    async def _begin(self, connection: Frame) -> None:
        """Register if the session has begun anew; say what became of the commands that it waits for."""
        if not connection.get("resumed"):
            self.answers.clear()
            ident = f"list-{len(self.connections)}"
            await self.send({"type": "capability", "capabilities": list(self.handlers), "id": ident})
        for request_id in connection.get("awaiting", []):
            if request_id not in self.answers:
                await self.send({"type": "unknown", "requestId": request_id})
            elif (answer := self.answers[request_id]) is not None:
                await self.send(answer)
        self.on_connected()

    async def _answer(self, command: Frame) -> None:
        request_id = command["requestId"]
        try:
            result = self.handlers[command["target"]](command["parameters"])
            answer = {"status": "success", "result": await result if inspect.isawaitable(result) else result}
        except AppFault as fault:
            answer = {"status": "error", "error": dict(zip(("message", "code"), fault.args, strict=False))}
        self.answers[request_id] = {"type": "response", "requestId": request_id, **answer}
        await self.send(self.answers[request_id] or {})


@contextlib.asynccontextmanager
async def resuming_application(
    gateways: Sequence[Listener], handlers: dict[str, Handler], **options: Any
) -> AsyncIterator[ResumingApp]:
    """Run an application that has connected once; end it at the end."""
    app = ResumingApp(gateways, handlers, **options)
    async with asyncio.TaskGroup() as tasks:
        living = tasks.create_task(app.live(tasks))
        try:
            await app.connected()
            yield app
        finally:
            app.wants_back = False
            app.returns.set()
            if app.socket is not None:
                await app.socket.close()
            living.cancel()
            for task in asyncio.all_tasks():
                if task.get_coro().__qualname__ == "ResumingApp._answer":  # type: ignore[union-attr]
                    task.cancel()
