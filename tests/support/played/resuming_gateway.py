"""A gateway to whose sessions applications come back, as these see it: tokens, what is awaited, commands again."""

import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from support.paths import ROOT
from support.wait import until

Frame = dict[str, Any]
LIBRARY = ROOT / "gateway/static/agentbridge.js"


class PlayedSession:
    """A session, its commands that are not answered, and everything that its clients have sent.

    Events may be left without acknowledgement.
    """

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.socket: ServerConnection | None = None
        self.token = ""
        self.awaiting: dict[str, Frame] = {}
        self.acknowledges = True
        self.received: list[Frame] = []

    def all(self, kind: str) -> list[Frame]:
        """Return the frames of this type that have come."""
        return [frame for frame in self.received if frame["type"] == kind]

    async def answered(self, request_id: str) -> Frame:
        """Wait for the answer to a command; there must be one alone."""
        await until(lambda: request_id not in self.awaiting, 15)
        [answer] = [frame for frame in self.all("response") if frame["requestId"] == request_id]
        return answer

    async def command(self, target: str, request_id: str) -> None:
        """Send a command."""
        frame: Frame = {"type": "command", "requestId": request_id, "target": target, "action": None, "parameters": {}}
        self.awaiting[request_id] = frame | {"timeoutMs": 30_000, "agent": {"id": "agent-1"}}
        await self.send(self.awaiting[request_id])

    async def send(self, frame: Frame) -> None:
        """Send a frame over the connection of the moment."""
        assert self.socket is not None
        await self.socket.send(json.dumps(frame))

    async def take(self, frame: Frame) -> None:
        """Note a frame, acknowledge it, and send a command again that its client does not know."""
        self.received.append(frame)
        if frame["type"] == "response":
            self.awaiting.pop(frame["requestId"], None)
        if frame["type"] == "unknown":
            await self.send(self.awaiting[frame["requestId"]])
        if "id" in frame and (self.acknowledges or frame["type"] != "event"):
            await self.send({"type": "ack", "id": frame["id"]})


class ResumingGateway:
    """Sessions by their tokens; `open` is what each connection asked for: its query and its subprotocols."""

    def __init__(self) -> None:
        self.url = ""
        self.opened: list[tuple[str, list[str]]] = []
        self.sessions: list[PlayedSession] = []
        self.is_away = False
        self._numbers = itertools.count(1)

    async def handle(self, socket: ServerConnection) -> None:
        """Serve one connection."""
        assert socket.request is not None
        offered = [each.strip() for each in socket.request.headers["Sec-WebSocket-Protocol"].split(",")]
        self.opened.append((urlsplit(socket.request.path).query, offered))
        token = next((each.removeprefix("resume.") for each in offered if each.startswith("resume.")), None)
        known = [each for each in self.sessions if token is not None and each.token == token]
        session = known[0] if known else PlayedSession(f"client-{len(self.sessions) + 1}")
        if not known:
            self.sessions.append(session)
        session.socket, session.token = socket, f"token-{next(self._numbers)}"
        greeting = {"type": "connection", "clientId": session.client_id, "protocolVersion": "1"}
        again = {"resumed": True, "awaiting": list(session.awaiting)} if known else {}
        await session.send({**greeting, "resumeToken": session.token, **again})
        with contextlib.suppress(ConnectionClosed):
            async for message in socket:
                await session.take(json.loads(message))

    def screen(self, connection: ServerConnection, request: Request) -> Response | None:
        """Serve the library, as gateways do; while it is away, nothing else."""
        if request.path == "/agentbridge.js":
            body = LIBRARY.read_bytes()
            headers = Headers({"Content-Type": "text/javascript", "Content-Length": str(len(body))})
            return Response(200, "OK", headers, body)
        return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "") if self.is_away else None

    async def session(self, number: int = 0) -> PlayedSession:
        """Wait until a session has registered, and return it."""
        await until(lambda: len(self.sessions) > number and bool(self.sessions[number].all("capability")), 15)
        return self.sessions[number]


@contextlib.asynccontextmanager
async def resuming_gateway() -> AsyncIterator[ResumingGateway]:
    """Serve on loopback."""
    gateway = ResumingGateway()
    async with serve(
        gateway.handle,
        "127.0.0.1",
        0,
        process_request=gateway.screen,
        select_subprotocol=lambda _, offered: next(each for each in offered if each == "agentbridge.v1"),
        compression=None,
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        gateway.url = f"ws://127.0.0.1:{port}/ws"
        yield gateway
