"""The WebSocket server: who may connect, on which paths, and the life of a connection from handshake to end."""

import http
import logging
from functools import partial
from typing import cast

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from gateway.receiving import Receiving
from gateway.sessions import LiveSession, Sessions
from gateway.settings import GatewaySettings
from protocol import PROTOCOL_VERSION
from protocol.access import APP, Principal
from protocol.errors import BridgeError, CloseCode, PermissionDenied, Unauthenticated, Unavailable
from protocol.frames import ConnectionFrame
from protocol.origins import Origins
from protocol.reports import EndReason
from protocol.runtime import logs
from protocol.runtime.auth import Verifier
from protocol.runtime.handshake import close_reason, require_own_page, select_subprotocol, token_of
from protocol.runtime.metrics import CONTENT_TYPE as METRICS_TYPE
from protocol.runtime.metrics import PATH as METRICS_PATH
from protocol.runtime.metrics import Metrics
from protocol.runtime.nats import Connection
from protocol.runtime.sockets import BoundedSocket

PATHS = frozenset({"/", "/ws", "/agent-bridge"})
OPEN_TIMEOUT_SECONDS = 10
CLOSE_TIMEOUT_SECONDS = 2
BACKLOG = 4096

log = logging.getLogger(__name__)


class GatewayServer:
    """Accepts applications and keeps a session for each."""

    def __init__(
        self,
        settings: GatewaySettings,
        connection: Connection,
        sessions: Sessions,
        receiving: Receiving,
        verifier: Verifier,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._sessions = sessions
        self._receiving = receiving
        self._verifier = verifier
        self._metrics = metrics
        self._origins = Origins(settings.allowed_origins)
        self._server: Server | None = None

    async def start(self) -> str:
        """Listen, and return the URL of the WebSocket."""
        socket_class = type("BoundSocket", (BoundedSocket,), {"send_buffer_bytes": self._settings.send_buffer_bytes})
        self._server = await serve(
            self._handle,
            self._settings.gateway_host,
            self._settings.gateway_port,
            process_request=self._screen,
            select_subprotocol=select_subprotocol,
            compression=None,
            server_header=None,
            open_timeout=OPEN_TIMEOUT_SECONDS,
            close_timeout=CLOSE_TIMEOUT_SECONDS,
            ping_interval=None,
            max_size=self._settings.max_message_bytes,
            create_connection=socket_class,
            backlog=BACKLOG,
        )
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"ws://{f'[{host}]' if ':' in host else host}:{port}/ws"

    def stop_intake(self) -> None:
        """Accept no more connections; those that are open go on."""
        if self._server is not None:
            self._server.server.close()

    async def close(self) -> None:
        """Send every client away to connect again elsewhere, and wait until their sockets are closed."""
        for session in self._sessions:
            session.close(CloseCode.RESTARTING, "the gateway is shutting down", EndReason.SHUTDOWN)
        if self._server is not None:
            self._server.close(code=CloseCode.RESTARTING)
            await self._server.wait_closed()

    # --- before the handshake ---

    def _screen(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer health checks, collectors, unknown paths and foreign pages before a WebSocket; None to go on."""
        path = request.path.partition("?")[0]  # not parsed as a URL: strangers write what cannot be one
        if path == "/healthz":
            return _respond(connection, http.HTTPStatus.OK, "ok\n")
        if path == "/readyz":
            return self._readiness(connection)
        if path == METRICS_PATH:
            return self._refused_page(connection, request) or self._figures(connection)
        if path not in PATHS:
            return _respond(connection, http.HTTPStatus.NOT_FOUND, "no such path: connect a WebSocket to /ws\n")
        if self._sessions.draining:
            return _respond(connection, http.HTTPStatus.SERVICE_UNAVAILABLE, "shutting down: connect again\n")
        return self._refused_page(connection, request)

    def _refused_page(self, connection: ServerConnection, request: Request) -> Response | None:
        try:
            require_own_page(request.headers, self._origins, loopback_only=self._verifier.off)
        except PermissionDenied as exc:
            return _respond(connection, http.HTTPStatus.FORBIDDEN, f"{exc.message}\n")
        return None

    def _readiness(self, connection: ServerConnection) -> Response:
        missing = "draining" if self._sessions.draining else None if self._connection.connected else "NATS is away"
        if missing:
            return _respond(connection, http.HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {missing}\n")
        return _respond(connection, http.HTTPStatus.OK, "ready\n")

    def _figures(self, connection: ServerConnection) -> Response:
        return _respond(connection, http.HTTPStatus.OK, self._metrics.text(), METRICS_TYPE)

    # --- one connection ---

    async def _handle(self, connection: ServerConnection) -> None:
        socket = cast("BoundedSocket", connection)
        principal = await self._authenticate(socket)
        session = await self._open(principal, socket) if principal is not None else None
        if session is None:
            return
        with logs.about(session.core.client_id):
            log.debug("connected")
            session.send(ConnectionFrame(session.core.client_id, PROTOCOL_VERSION))
            socket.receive_by(partial(self._receiving.take, session))
            try:
                await socket.wait_closing()
            finally:
                reason = _reason(socket)
                log.debug("disconnected: %s", reason)
                self._sessions.end(session, reason)

    async def _authenticate(self, socket: BoundedSocket) -> Principal | None:
        """Return whom the connection speaks for; a refusal is a close code, which browsers can see."""
        assert socket.request is not None
        try:
            token = token_of(socket.request)
            if not token and not self._verifier.off:
                socket.close_soon(CloseCode.NO_CREDENTIALS, "authentication required")
                return None
            principal = await self._verifier.verify(token)
        except Unauthenticated as exc:
            socket.close_soon(CloseCode.REFUSED, close_reason(exc.message))
        except Unavailable as exc:
            socket.close_soon(CloseCode.RESTARTING, close_reason(exc.message))
        else:
            if principal.role == APP or self._verifier.off:
                return principal
            socket.close_soon(CloseCode.REFUSED, "an application needs a token with the role app")
        return None

    async def _open(self, principal: Principal, socket: BoundedSocket) -> LiveSession | None:
        try:
            return await self._sessions.open(principal, socket)
        except BridgeError as exc:
            log.info("turned a client away: %s", exc.message)
            socket.close_soon(CloseCode.RESTARTING, close_reason(exc.message))
            return None


def _respond(connection: ServerConnection, status: http.HTTPStatus, text: str, content_type: str = "") -> Response:
    """Return a response with a text, which is a plain one unless `content_type` says more."""
    response = connection.respond(status, text)
    headers = Headers(response.headers)
    headers["Cache-Control"] = "no-store"
    if content_type:
        del headers["Content-Type"]  # assigning adds another
        headers["Content-Type"] = content_type
    response.headers = headers
    return response


def _reason(socket: BoundedSocket) -> EndReason:
    """Return why a connection has ended, as the registry announces it."""
    received, sent = socket.protocol.close_rcvd, socket.protocol.close_sent
    if socket.too_slow:
        return EndReason.TOO_SLOW
    if received is not None and received.code in (CloseCode.NORMAL, CloseCode.GOING_AWAY, CloseCode.NO_STATUS):
        return EndReason.CLOSED
    if sent is not None and sent.code == CloseCode.TOO_LARGE:
        return EndReason.MESSAGE_TOO_LARGE
    return EndReason.CONNECTION_LOST
