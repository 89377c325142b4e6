"""Serves agents' WebSockets: checks the handshake, authenticates, runs the session, and drains on shutdown.

A handshake is refused over HTTP only for a foreign web page or if there is no room. A bad token is refused after the
handshake, by a close code, because a browser's page cannot see the status of a handshake.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from agent_api.context import SocketContext
from agent_api.http.problems import JSON, HttpAnswer, http_answer_of
from agent_api.settings import ApiSettings
from agent_api.socket.dialect_choice import dialect_at
from agent_api.socket.live import LiveSocket
from agent_api.socket.session import AgentLimits, AgentSession
from protocol.access import Principal, require_agent
from protocol.errors import BridgeError, CloseCode, Overloaded, PermissionDenied, Unauthenticated, Unavailable
from protocol.origins import Origins
from protocol.runtime.clients.denied_agents import DeniedAgents
from protocol.runtime.version import allows_fast_path
from protocol.runtime.websocket.connection import BoundedSocket, SocketBounds
from protocol.runtime.websocket.handshake import TurnedAway, close_reason, require_own_page, require_token, turned_away
from protocol.runtime.websocket.refused_connections import FOREIGN_ORIGIN, NO_TOKEN, RefusedConnections
from protocol.runtime.websocket.upgrade import Upgrades

MAX_SOCKETS = 10_000
TICK_SECONDS = 1.0


class SocketServer:
    """The agents' sockets of this process. The HTTP server passes handshakes to `upgrades`.

    `count` is called for each answer to a handshake, with the path and the HTTP status.
    """

    def __init__(
        self,
        settings: ApiSettings,
        origins: Origins,
        context: SocketContext,
        refused: RefusedConnections,
        denied: DeniedAgents,
        count: Callable[[str, int], None],
    ) -> None:
        fast = [allows_fast_path(name, settings.fast_paths) for name in ("websocket_in", "websocket_out")]
        sizes = settings.max_message_bytes, settings.send_buffer_bytes
        bounds = SocketBounds(*sizes, context.turns, context.bounds, *fast)
        self.upgrades = Upgrades(bounds, self._screen, count, self._serve)
        self._origins = origins
        self._context = context
        self._live: set[LiveSocket] = set()
        self._refused = refused
        self._denied = denied
        self._limits = AgentLimits(
            command_timeout_ms=settings.command_timeout_ms,
            max_command_timeout_ms=settings.max_command_timeout_ms,
            ping_interval_seconds=settings.ping_interval_seconds,
            ping_timeout_seconds=settings.ping_timeout_seconds,
        )

    @contextlib.asynccontextmanager
    async def sockets(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Check all sockets once a second. On a regular exit, close them and wait until they are closed."""
        tasks.create_task(self._run_clock(), name="clock of agents' sockets")
        yield
        await self._close()

    @contextlib.asynccontextmanager
    async def taking_commands(self) -> AsyncIterator[None]:
        """On a regular exit, drain every socket: it takes no new commands and closes after the last response."""
        yield
        for socket in list(self._live):
            socket.drain()

    async def _run_clock(self) -> None:
        """Once a second, for ever: ping quiet agents, and close those that do not answer or do not read."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._tick()

    def _tick(self) -> None:
        # Not in the loop that sleeps: its variable would hold the last socket after its end.
        for socket in list(self._live):
            socket.tick()

    async def _close(self) -> None:
        """Close every socket, and wait until all are closed."""
        for socket in list(self._live):
            socket.give_up()
        await self.upgrades.wait_closed()

    # --- one connection ---

    def _screen(self, connection: ServerConnection, request: Request) -> Response | None:
        """Return the refusal of a handshake, or None to accept it.

        A foreign web page gets 403. During a drain, and above 10,000 sockets, everybody is refused.
        """
        try:
            require_own_page(request.headers, self._origins, loopback_only=self._context.verifier.off)
            if self._context.admission.draining:
                raise Unavailable("this process is shutting down; connect again in a moment")
            if len(self.upgrades) > MAX_SOCKETS:
                raise Overloaded("too many sockets are open; try again in a moment")
        except BridgeError as exc:
            reason = FOREIGN_ORIGIN if isinstance(exc, PermissionDenied) else exc.code.value
            self._refused.note(connection, request, reason, exc.message)
            return _response(connection, http_answer_of(exc))
        return None

    async def _serve(self, socket: BoundedSocket) -> None:
        try:
            token, principal = await self._authenticate(socket)
            try:
                socket.admit(principal.tenant, principal.sub)
            except Overloaded as exc:
                # Log it here, because below the `sub` of the refused agent is not known any more.
                self._refused.note(socket, socket.request, exc.code.value, exc.message, principal.sub)
                raise
            await self._live_on(socket, token, principal)
        except Overloaded as exc:
            socket.close_soon(CloseCode.TOO_MANY, close_reason(exc.message))
        except TurnedAway as exc:
            socket.close_soon(exc.code, exc.reason)

    async def _live_on(self, socket: BoundedSocket, token: str | None, principal: Principal) -> None:
        assert socket.request is not None
        core = AgentSession(principal, self._limits, socket.loop.time())
        live = LiveSocket(core, socket, dialect_at(socket.request.path), token, self._context)
        self._live.add(live)
        try:
            live.begin()
            socket.receive_by(live.receive)
            if self._context.admission.draining:
                # The drain began after the handshake, so it has not seen this socket.
                live.drain()
            with self._denied.watching(principal, live.refuse):
                await socket.wait_closing()
        finally:
            self._live.discard(live)
            live.end()

    async def _authenticate(self, socket: BoundedSocket) -> tuple[str | None, Principal]:
        """Return the token and its principal. Raises `TurnedAway` with the close code if the token is refused."""
        verifier, principal = self._context.verifier, None
        assert socket.request is not None
        try:
            token = require_token(socket.request, verifier)
            principal = verifier.verify_now(token) or await verifier.verify(token)
            require_agent(principal)
        except TurnedAway as exc:
            # There is no token, so the refusal has no `sub`.
            self._context.sender.audit.unauthenticated()
            self._refused.note(socket, socket.request, NO_TOKEN, exc.reason)
            raise
        except (Unauthenticated, PermissionDenied, Unavailable) as exc:
            if isinstance(exc, Unauthenticated):
                self._context.sender.audit.unauthenticated()
            sub = principal.sub if principal is not None else None
            self._refused.note(socket, socket.request, exc.code.value, exc.message, sub)
            raise turned_away(exc) from exc
        return token, principal


def _response(connection: ServerConnection, answer: HttpAnswer) -> Response:
    response = connection.respond(answer.status, answer.body.decode())
    del response.headers["Content-Type"]
    for name, value in ((b"content-type", JSON), (b"cache-control", b"no-store"), *answer.headers):
        response.headers[name.decode()] = value.decode()
    return response
