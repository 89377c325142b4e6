"""Who may open an agents' WebSocket, the life of each from its handshake to its end, and the end of all at drain."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

from websockets.asyncio.server import Server, ServerConnection
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from agent_api.http.problems import JSON, Answer, answer_of
from agent_api.settings import ApiSettings
from agent_api.socket.connection import AgentsSocket
from agent_api.socket.live import LiveSocket
from agent_api.socket.session import AgentSession, Limits
from agent_api.socket.surroundings import Surroundings
from protocol.access import Principal, require_agent
from protocol.errors import BridgeError, CloseCode, Overloaded, PermissionDenied, Unauthenticated, Unavailable
from protocol.origins import Origins
from protocol.runtime.handshake import close_reason, require_own_page, select_subprotocol, token_of

MAX_SOCKETS = 10_000
OPEN_TIMEOUT_SECONDS = 10
CLOSE_TIMEOUT_SECONDS = 2
TICK_SECONDS = 1.0

log = logging.getLogger(__name__)


class SocketDoor:
    """Makes a connection of every upgrade, and keeps the sockets. To the library it is their server."""

    def __init__(self, settings: ApiSettings, origins: Origins, around: Surroundings) -> None:
        self.handler_tasks: set[asyncio.Task[None]] = set()
        self._settings = settings
        self._origins = origins
        self._around = around
        self._live: set[LiveSocket] = set()
        self._of_agent: Counter[tuple[str, str]] = Counter()
        self._limits = Limits(
            command_timeout_ms=settings.command_timeout_ms,
            max_command_timeout_ms=settings.max_command_timeout_ms,
            ping_interval_seconds=settings.ping_interval_seconds,
            ping_timeout_seconds=settings.ping_timeout_seconds,
        )
        bound = {"send_buffer_bytes": settings.send_buffer_bytes}
        self._connection_class = type("BoundSocket", (AgentsSocket,), bound)

    def connection(self, **_: Any) -> AgentsSocket:
        """Return the protocol of one upgraded connection; what the HTTP server tells of itself is not needed."""
        protocol = ServerProtocol(
            select_subprotocol=lambda _, offered: select_subprotocol(connection, offered),
            max_size=self._settings.max_message_bytes,
        )
        connection: AgentsSocket = self._connection_class(
            protocol, cast("Server", self), ping_interval=None, close_timeout=CLOSE_TIMEOUT_SECONDS
        )
        return connection

    def is_serving(self) -> bool:
        """Tell whether a handshake may succeed; by our own answer it does not while draining."""
        return True

    async def handler(self, connection: ServerConnection) -> None:
        """Live the life of a connection; it is closed when this returns."""
        try:
            if await self._shakes_hands(connection):
                async with connection:
                    await self._serve(cast("AgentsSocket", connection))
        except Exception:
            log.exception("an agent's socket failed")
        finally:
            connection.transport.abort()
            self.handler_tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def run_clock(self) -> None:
        """Look after silent agents, for ever."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for socket in list(self._live):
                socket.tick()

    def drain(self) -> None:
        """Have every socket close once its commands have their responses."""
        for socket in list(self._live):
            socket.drain()

    async def close(self) -> None:
        """Close every socket, and wait, within bounds, until they are closed."""
        for socket in list(self._live):
            socket.give_up()
        if self.handler_tasks:
            await asyncio.wait(self.handler_tasks, timeout=CLOSE_TIMEOUT_SECONDS + TICK_SECONDS)

    # --- one connection ---

    async def _shakes_hands(self, connection: ServerConnection) -> bool:
        """Tell whether there is a WebSocket now; what strangers do wrong before is no news."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_SECONDS):
                await connection.handshake(self._screen, server_header=None)
        except Exception:
            log.debug("a handshake failed", exc_info=True)
        return connection.protocol.state is OPEN

    def _screen(self, connection: ServerConnection, request: Request) -> Response | None:
        """Turn away foreign web pages, and everybody where there is no room, before there is a WebSocket."""
        try:
            require_own_page(request.headers, self._origins, loopback_only=self._around.verifier.off)
            if self._around.intake.draining:
                raise Unavailable("this process is shutting down; connect again in a moment")
            if len(self.handler_tasks) > MAX_SOCKETS:
                raise Overloaded("too many sockets are open; try again in a moment")
        except BridgeError as exc:
            return _response(connection, answer_of(exc))
        return None

    async def _serve(self, socket: AgentsSocket) -> None:
        try:
            token, principal = await self._authenticate(socket)
            with self._counted(principal):
                await self._live_on(socket, token, principal)
        except _Turned as exc:
            socket.close_soon(exc.code, close_reason(exc.reason))

    @contextlib.contextmanager
    def _counted(self, principal: Principal) -> Iterator[None]:
        """Count an agent's socket, and turn away one too many: what it may leave unread, or in flight, adds up."""
        agent, bound = (principal.tenant, principal.sub), self._settings.max_sockets_per_agent
        if self._of_agent[agent] >= bound:
            raise _Turned(CloseCode.TOO_MANY, f"this agent has {bound} sockets open here; close one of them")
        self._of_agent[agent] += 1
        try:
            yield
        finally:
            self._of_agent[agent] -= 1
            if not self._of_agent[agent]:
                del self._of_agent[agent]

    async def _live_on(self, socket: AgentsSocket, token: str | None, principal: Principal) -> None:
        live = LiveSocket(AgentSession(principal, self._limits, socket.loop.time()), socket, token, self._around)
        self._live.add(live)
        try:
            socket.receive_by(live.receive)
            if self._around.intake.draining:  # it has begun since the handshake
                live.drain()
            await socket.wait_closing()
        finally:
            self._live.discard(live)
            live.end()

    async def _authenticate(self, socket: AgentsSocket) -> tuple[str | None, Principal]:
        """Return a token and whom it speaks for; a refusal is a close code, which browsers can see."""
        verifier = self._around.verifier
        assert socket.request is not None
        try:
            token = token_of(socket.request)
            if not token and not verifier.off:
                self._around.commands.refusals.unauthenticated()
                raise _Turned(CloseCode.NO_CREDENTIALS, "authentication required")
            principal = verifier.verify_now(token) or await self._verify(token, socket)
            require_agent(principal)
        except Unauthenticated as exc:
            self._around.commands.refusals.unauthenticated()
            raise _Turned(CloseCode.REFUSED, exc.message) from exc
        except PermissionDenied as exc:
            raise _Turned(CloseCode.REFUSED, exc.message) from exc
        except Unavailable as exc:
            raise _Turned(CloseCode.RESTARTING, exc.message) from exc
        return token, principal

    async def _verify(self, token: str | None, socket: AgentsSocket) -> Principal:
        """Verify a token by a key that has to be fetched; what the agent sends meanwhile waits in the network."""
        socket.transport.pause_reading()
        try:
            return await self._around.verifier.verify(token)
        finally:
            if not socket.transport.is_closing():
                socket.transport.resume_reading()


class _Turned(Exception):
    """Somebody is not let in."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def _response(connection: ServerConnection, answer: Answer) -> Response:
    response = connection.respond(answer.status, answer.body.decode())
    del response.headers["Content-Type"]
    for name, value in ((b"content-type", JSON), (b"cache-control", b"no-store"), *answer.headers):
        response.headers[name.decode()] = value.decode()
    return response
