"""The WebSocket server: runs each connection from its handshake to its end, and closes all when the gateway drains."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import cast

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from gateway.client_frames import ClientFrames
from gateway.dialects.choice import DialectChoice
from gateway.dialects.dialect import Dialect
from gateway.http_endpoints import HttpEndpoints, path_of
from gateway.introduction import Introducing
from gateway.sessions.live import LiveSession, say_farewell
from gateway.sessions.resumable import Sessions
from gateway.settings import GatewaySettings
from protocol.access import APP, Principal
from protocol.errors import BridgeError, CloseCode, PermissionDenied
from protocol.reports import EndReason
from protocol.runtime import logs
from protocol.runtime.log_throttle import LogBudget
from protocol.runtime.tokens import Verifier
from protocol.runtime.websocket.connection import (
    CLOSE_TIMEOUT_SECONDS,
    OPEN_TIMEOUT_SECONDS,
    BoundedSocket,
    SocketBounds,
)
from protocol.runtime.websocket.handshake import (
    TurnedAway,
    last_resort,
    require_some,
    resume_token_of,
    token_of,
    turned_away,
)
from protocol.runtime.websocket.refused_connections import NO_INTRODUCTION, NO_TOKEN
from protocol.runtime.websocket.server import bounded_socket, stop_accepting, wait_closed

BACKLOG = 4096
LINES_A_SECOND = 50  # of applications that come and go

log = logging.getLogger(__name__)


class GatewayServer:
    """Accepts applications and keeps a session for each."""

    def __init__(
        self,
        settings: GatewaySettings,
        sessions: Sessions,
        client_frames: ClientFrames,
        verifier: Verifier,
        http: HttpEndpoints,
        dialects: DialectChoice,
        bounds: SocketBounds,
    ) -> None:
        self._settings = settings
        self._sessions = sessions.table
        self._resumable = sessions.resumable
        self._client_frames = client_frames
        self._verifier = verifier
        self._http = http
        self._dialects = dialects
        self._connections: set[BoundedSocket] = set()
        self._bounds = bounds
        self._refused = http.refused
        self._lines = LogBudget(LINES_A_SECOND, asyncio.get_running_loop().time)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Accept connections. Yield the URL of the WebSocket.

        On a regular exit accept no more connections and commands, wait for commands in flight, then close every
        connection with 1012, so that clients connect to another gateway.
        """
        server = await self._listen()
        host, port = server.sockets[0].getsockname()[:2]
        yield f"ws://{f'[{host}]' if ':' in host else host}:{port}{self._dialects.usual_path}"
        stop_accepting(server, self._connections)
        self._sessions.drain()
        if self._resumable is not None:
            await self._resumable.drain()
        await self._sessions.wait_commands(self._settings.drain_seconds)
        for session in self._sessions:
            session.close(CloseCode.RESTARTING, "the gateway is shutting down", EndReason.SHUTDOWN)
        server.close(code=CloseCode.RESTARTING)
        await wait_closed(self._connections)
        await server.wait_closed()
        if self._resumable is not None:
            await self._resumable.hand_over()

    async def _listen(self) -> Server:
        return await serve(
            self._handle,
            self._settings.gateway_host,
            self._settings.gateway_port,
            process_request=self._screen,
            process_response=self._http.count,
            select_subprotocol=self._select_subprotocol,
            compression=None,
            server_header=None,
            open_timeout=OPEN_TIMEOUT_SECONDS,
            close_timeout=CLOSE_TIMEOUT_SECONDS,
            ping_interval=None,
            max_size=self._bounds.max_message_bytes,
            create_connection=bounded_socket(self._bounds, self._connections),
            backlog=BACKLOG,
        )

    # --- the opening handshake ---

    def _screen(self, connection: ServerConnection, request: Request) -> Response | None:
        return self._http.screen(connection, request, dialects=self._dialects)

    def _select_subprotocol(self, connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        assert connection.request is not None
        chosen = self._dialects.subprotocol(path_of(connection.request), offered)
        return last_resort(offered) if chosen is None else Subprotocol(chosen)

    # --- one connection ---

    async def _handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        socket = cast("BoundedSocket", connection)
        dialect = self._dialects.make(path_of(connection.request), connection.subprotocol)
        introducing = None if dialect.entry is None else Introducing(socket, dialect.entry)
        try:
            session = await self._open(connection.request, socket, dialect, introducing)
        except TurnedAway as exc:
            say_farewell(socket, dialect, exc.code, exc.reason)
            return
        with logs.about(session.core.client_id):
            self._log("connected, as %s of %s", session.core.principal.sub, session.core.principal.tenant)
            if session.part is None:
                # A resumable session has sent its first frame, with the awaited ids, already.
                session.greet()
            receiver = partial(self._client_frames.take, session)
            if introducing is None:
                socket.receive_by(receiver)
            else:
                introducing.hand_over(receiver)
            try:
                await socket.wait_closing()
            finally:
                reason = _end_reason(socket)
                self._log("disconnected: %s", reason)
                self._end(session, socket, reason)

    def _end(self, session: LiveSession, socket: BoundedSocket, reason: EndReason) -> None:
        if self._resumable is None or session.part is None:
            self._sessions.end(session, reason)
            return
        goodbye = socket.close_codes[0] in (CloseCode.NORMAL, CloseCode.NO_STATUS)
        self._resumable.left(session, socket, reason, goodbye=goodbye)

    async def _open(
        self, request: Request, socket: BoundedSocket, dialect: Dialect, introducing: Introducing | None
    ) -> LiveSession:
        """Begin the session of a connection. Raises `TurnedAway` if its token or NATS does not allow it."""
        principal = None
        try:
            token = token_of(request)
            if introducing is not None:
                token = await introducing.token(self._sessions.told_limits) or token
            principal = await self._verifier.verify(require_some(token, self._verifier))
            self._require_application(principal)
            socket.admit(principal.tenant, principal.sub)
            resume = resume_token_of(request) if self._dialects.resumes(path_of(request)) else None
            if resume is None or self._resumable is None:
                return await self._sessions.open(principal, socket, dialect)
            return await self._resumable.open(principal, socket, dialect, resume)
        except TurnedAway as exc:
            if exc.code not in (CloseCode.NORMAL, CloseCode.REPLACED):
                reason = NO_TOKEN if exc.code == CloseCode.NO_CREDENTIALS else NO_INTRODUCTION
                self._refused.note(socket, request, reason, exc.reason)
            raise
        except BridgeError as exc:
            self._refused.note(socket, request, exc.code.value, exc.message, principal.sub if principal else None)
            raise turned_away(exc) from exc

    def _log(self, text: str, *about: object) -> None:
        """Log that a client comes or goes: some a second, with the number of the others."""
        if self._lines.admits():
            if count := self._lines.take_kept_back():
                log.info("%d lines about applications that came and went were left out", count)
            log.info(text, *about)

    def _require_application(self, principal: Principal) -> None:
        if principal.role != APP and not self._verifier.off:
            raise PermissionDenied("an application needs a token with the role app")


def _end_reason(socket: BoundedSocket) -> EndReason:
    """Return the reason of a connection's end, for the registry's announcement."""
    received, sent = socket.close_codes
    if socket.too_slow:
        return EndReason.TOO_SLOW
    if received in (CloseCode.NORMAL, CloseCode.GOING_AWAY, CloseCode.NO_STATUS):
        return EndReason.CLOSED
    if sent == CloseCode.TOO_LARGE:
        return EndReason.MESSAGE_TOO_LARGE
    return EndReason.CONNECTION_LOST
