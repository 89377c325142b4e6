"""The HTTP application: the command endpoint in front, an ordinary FastAPI application behind it, CORS around both."""

import logging
from collections.abc import Awaitable, Mapping
from http import HTTPStatus
from typing import cast

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from agent_api import contract, docs
from agent_api.audit.contract import PATH as AUDIT_PATH
from agent_api.audit.endpoint import AuditEndpoint
from agent_api.commands.endpoint import CommandEndpoint
from agent_api.events.contract import PATH as EVENTS_PATH
from agent_api.events.endpoint import EventsEndpoint
from agent_api.health import Health
from agent_api.http import writing
from agent_api.http.connections import SOCKET_PATH
from agent_api.http.problems import HttpFault, answer_of
from agent_api.http.responses import problem_response
from agent_api.openapi import COMMAND_PATH, Application
from agent_api.routes import Directory
from protocol.errors import BridgeError, Internal
from protocol.origins import Origins
from protocol.runtime.metrics import PATH as METRICS_PATH

EXPOSED_HEADERS = ("ETag", "Idempotency-Replayed", "Link", "Retry-After", "WWW-Authenticate")
REQUEST_HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID")
FILE_METHODS = {"GET", "HEAD"}

log = logging.getLogger(__name__)


def build(
    command: CommandEndpoint,
    events: EventsEndpoint,
    audit: AuditEndpoint,
    directory: Directory,
    health: Health,
    origins: Origins,
) -> ASGIApp:
    """Return the whole application."""
    readers: dict[str, ASGIApp] = {EVENTS_PATH: events, AUDIT_PATH: audit}
    return Cors(Front(command, readers, ordinary_routes(command, readers, directory, health)), origins)


class Front:
    """Sends commands, and readers by their paths, straight to their endpoints, all else through FastAPI."""

    def __init__(self, command: ASGIApp, readers: Mapping[str, ASGIApp], rest: ASGIApp) -> None:
        self._command = command
        self._readers = readers
        self._rest = rest

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the serving of one request, to be awaited; nothing thrown leaves it."""
        if scope["path"] == COMMAND_PATH and scope["method"] == "POST":
            return self._command(scope, receive, send)
        if scope["path"] in self._readers and scope["method"] == "GET":
            return self._readers[scope["path"]](scope, receive, send)
        return self._serve_ordinary(scope, receive, send)

    async def _serve_ordinary(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._rest(scope, receive, send)
        except Exception:  # the framework has answered, and throws so that somebody logs
            log.exception("%s %r failed", scope["method"], scope["path"])


class Cors(CORSMiddleware):
    """Cross-origin rules (the Fetch standard's) by our own matcher of origins; never with credentials."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        super().__init__(
            app,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=REQUEST_HEADERS,
            expose_headers=EXPOSED_HEADERS,
        )
        self._origins = origins

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # type: ignore[override]
        """Return the serving of one request; what does not come from a web page has nothing to do with origins."""
        for name, _ in scope["headers"]:
            if name == b"origin":
                writing.withdraw(scope)
                return super().__call__(scope, receive, send)
        return self.app(scope, receive, send)

    def is_allowed_origin(self, origin: str) -> bool:
        """Tell whether a browser may show this origin's pages our answers."""
        return self._origins.allows(origin)


def ordinary_routes(
    command: CommandEndpoint, readers: Mapping[str, ASGIApp], directory: Directory, health: Health
) -> Application:
    """Return the application without what stands before and around it."""
    app = Application()
    app.add_api_route("/api/capabilities", directory.capabilities, **contract.CAPABILITIES)
    app.add_api_route("/api/clients", directory.clients, **contract.CLIENTS)
    app.add_api_route("/api/clients/{client_id}", directory.client, **contract.CLIENT)
    app.add_api_route("/api/clients/{client_id}", directory.disconnect, methods=["DELETE"], **contract.DISCONNECT)
    app.add_api_route(SOCKET_PATH, directory.socket, **contract.SOCKET)
    app.add_api_route("/healthz", health.alive, **contract.ALIVE)
    app.add_api_route("/readyz", health.ready, **contract.READY)
    app.add_api_route(METRICS_PATH, health.metrics, **contract.METRICS)
    app.router.routes.append(Route(COMMAND_PATH, command, methods=["POST"]))
    app.router.routes.extend(_only_get(path, endpoint) for path, endpoint in readers.items())
    docs.install(app)
    app.add_exception_handler(BridgeError, _tell)
    app.add_exception_handler(HTTPException, _tell_http)
    app.add_exception_handler(Exception, _tell_internal)
    return app


def _only_get(path: str, endpoint: ASGIApp) -> Route:
    """Return a route that takes no HEAD, which the router would add: a stream has no end that HEAD could wait for."""
    route = Route(path, endpoint, methods=["GET"])
    route.methods = {"GET"}
    return route


async def _tell(request: Request, error: Exception) -> Response:
    return problem_response(answer_of(cast("BridgeError", error)))


async def _tell_http(request: Request, error: Exception) -> Response:
    """Answer what the router refuses: a path that it does not know, a method that the path does not take."""
    status = cast("HTTPException", error).status_code
    if status != HTTPStatus.METHOD_NOT_ALLOWED:
        return problem_response(answer_of(HttpFault(status, "there is nothing at this path; /docs lists what is")))
    allowed = ", ".join(sorted(_methods(request)))
    response = problem_response(answer_of(HttpFault(status, f"this path takes {allowed} only")))
    response.headers["allow"] = allowed
    return response


def _methods(request: Request) -> set[str]:
    """Return what a path takes, of all its routes: the router's own `Allow` has the first one's alone."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    matching = [route.methods or set() for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return set[str]().union(*matching) or FILE_METHODS


async def _tell_internal(request: Request, error: Exception) -> Response:
    return problem_response(answer_of(Internal("the request failed; the log of the process says why")))
