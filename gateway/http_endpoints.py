"""A gateway's answers to HTTP requests that open no WebSocket: health, metrics, the library, refusals."""

import http

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from gateway.dialects.choice import DialectChoice
from gateway.sessions.table import SessionTable
from gateway.static import files
from protocol.errors import PermissionDenied
from protocol.origins import Origins
from protocol.runtime.nats.connection import Connection
from protocol.runtime.process.answer_counts import AnswerCounts
from protocol.runtime.process.metrics import CONTENT_TYPE as METRICS_TYPE
from protocol.runtime.process.metrics import PATH as METRICS_PATH
from protocol.runtime.process.metrics import Metrics
from protocol.runtime.version import SERVICE_VERSION
from protocol.runtime.websocket.handshake import require_own_page
from protocol.runtime.websocket.refused_connections import FOREIGN_ORIGIN, RefusedConnections

PATHS = frozenset({"/healthz", "/readyz", METRICS_PATH, *files.PATHS})
METHODS = ("GET", "HEAD")


class HttpEndpoints:
    """Answers before the opening handshake. With `loopback_only` it serves requests that name this machine alone."""

    def __init__(
        self,
        connection: Connection,
        sessions: SessionTable,
        metrics: Metrics,
        origins: Origins,
        refused: RefusedConnections,
        answers: AnswerCounts,
        *,
        loopback_only: bool,
    ) -> None:
        self._connection = connection
        self._sessions = sessions
        self._metrics = metrics
        self._origins = origins
        self.refused = refused
        self._answers = answers
        self._loopback_only = loopback_only
        self._library = files.LibraryFiles(origins, SERVICE_VERSION)

    def screen(self, connection: ServerConnection, request: Request, *, dialects: DialectChoice) -> Response | None:
        """Return the answer to a request; None if a WebSocket may be opened, which needs the path of a dialect."""
        response = self._answer(connection, request, dialects)
        if request.method == "HEAD":
            response = response or _upgrade_required(connection)
            response.body = b""  # its head is that of the answer to GET (RFC 9110 section 9.3.2)
        return response

    def count(self, _: ServerConnection, request: Request, response: Response) -> None:
        """Count an answer, also that to a WebSocket's opening handshake."""
        self._answers.count(path_of(request), response.status_code)

    def _answer(self, connection: ServerConnection, request: Request, dialects: DialectChoice) -> Response | None:
        path = path_of(request)
        if request.method not in METHODS and (path in PATHS or dialects.serves(path)):
            return _method_not_allowed(connection)
        if path in files.PATHS:
            return self._library.answer(connection, request, path)
        if path == "/healthz":
            return _respond(connection, http.HTTPStatus.OK, "ok\n")
        if path == "/readyz":
            return self._readiness(connection)
        if path == METRICS_PATH:
            return self._refused_page(connection, request) or self._counted(connection)
        if not dialects.serves(path):
            hint = f"no such path: connect a WebSocket to {dialects.usual_path}\n"
            return _respond(connection, http.HTTPStatus.NOT_FOUND, hint)
        if self._sessions.draining:
            return _respond(connection, http.HTTPStatus.SERVICE_UNAVAILABLE, "shutting down: connect again\n")
        return self._refused_page(connection, request) or _refused_query(connection, request, dialects)

    def _refused_page(self, connection: ServerConnection, request: Request) -> Response | None:
        try:
            require_own_page(request.headers, self._origins, loopback_only=self._loopback_only)
        except PermissionDenied as exc:
            self.refused.note(connection, request, FOREIGN_ORIGIN, exc.message)
            return _respond(connection, http.HTTPStatus.FORBIDDEN, f"{exc.message}\n")
        return None

    def _readiness(self, connection: ServerConnection) -> Response:
        missing = "draining" if self._sessions.draining else None if self._connection.connected else "NATS is away"
        if missing:
            return _respond(connection, http.HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {missing}\n")
        return _respond(connection, http.HTTPStatus.OK, "ready\n")

    def _counted(self, connection: ServerConnection) -> Response:
        return _respond(connection, http.HTTPStatus.OK, self._metrics.text(), METRICS_TYPE)


def answer_counts(dialects: DialectChoice) -> AnswerCounts:
    """Return the counts of a gateway's answers: 200 is usual for files and probes, 101 for WebSockets."""
    return AnswerCounts(dict.fromkeys(PATHS, 200) | dict.fromkeys(dialects.paths, 101))


def path_of(request: Request) -> str:
    """Return the path of a request, not parsed as a URL: strangers write paths that cannot be one."""
    return request.path.partition("?")[0]


def _refused_query(connection: ServerConnection, request: Request, dialects: DialectChoice) -> Response | None:
    """Return the answer of a dialect that does not open connections by such a query."""
    path, _, query = request.path.partition("?")
    refused = dialects.refusal(path, query)
    if refused is None:
        return None
    return _respond(connection, http.HTTPStatus(refused.status), refused.body.decode(), "application/json")


def _method_not_allowed(connection: ServerConnection) -> Response:
    response = _respond(connection, http.HTTPStatus.METHOD_NOT_ALLOWED, "this path takes GET and HEAD only\n")
    response.headers["Allow"] = ", ".join(METHODS)
    return response


def _upgrade_required(connection: ServerConnection) -> Response:
    response = _respond(connection, http.HTTPStatus.UPGRADE_REQUIRED, "connect a WebSocket here\n")
    response.headers["Upgrade"] = "websocket"
    return response


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
