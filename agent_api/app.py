"""The HTTP application: the command endpoint in front, an ordinary FastAPI application behind it, CORS around both."""

import logging
from collections.abc import Awaitable, Mapping
from http import HTTPStatus
from typing import NamedTuple, cast

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from agent_api.http import writing
from agent_api.http.connections import COMMAND_PATH, SDK_SOCKET_PATHS, SOCKET_PATH
from agent_api.http.problems import HttpFault, http_answer_of
from agent_api.http.request_counts import TOOL_PATH
from agent_api.http.responses import problem_response
from agent_api.mcp.discovery import METADATA_PATHS
from agent_api.mcp.endpoint import PATH as MCP_PATH
from agent_api.openapi import schemas
from agent_api.openapi import tools as tool_schemas
from agent_api.openapi.audit import PATH as AUDIT_PATH
from agent_api.openapi.document import Application
from agent_api.openapi.events import PATH as EVENTS_PATH
from agent_api.routes import docs
from agent_api.routes.agents import AgentRoutes
from agent_api.routes.audit import AuditEndpoint
from agent_api.routes.command import CommandEndpoint
from agent_api.routes.discovery import DiscoveryRoutes
from agent_api.routes.events import EventsEndpoint
from agent_api.routes.health import HealthRoutes
from agent_api.routes.tools import PATH as TOOLS_PATH
from agent_api.routes.tools import ToolCallEndpoint, ToolRoutes
from protocol.errors import BridgeError, Internal
from protocol.origins import Origins
from protocol.runtime.process.metrics import PATH as METRICS_PATH

EXPOSED_HEADERS = ("ETag", "Idempotency-Replayed", "Link", "Mcp-Session-Id", "Retry-After", "WWW-Authenticate")
REQUEST_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID"),
    *("Mcp-Method", "Mcp-Name", "Mcp-Protocol-Version", "Mcp-Session-Id"),
)
COUNTED_PATHS = frozenset(
    {
        *(COMMAND_PATH, EVENTS_PATH, AUDIT_PATH, SOCKET_PATH, *SDK_SOCKET_PATHS, METRICS_PATH),
        *("/api/capabilities", "/api/clients", "/healthz", "/readyz", TOOLS_PATH, MCP_PATH),
    }
)
READING_METHODS = frozenset({"GET", "HEAD"})

log = logging.getLogger(__name__)


class ToolParts(NamedTuple):
    """The parts that serve tools: their list, their calls, MCP, and the metadata for MCP hosts about tokens."""

    routes: ToolRoutes
    calls: ToolCallEndpoint
    mcp: ASGIApp
    metadata: ASGIApp


def build(
    command: CommandEndpoint,
    events: EventsEndpoint,
    audit: AuditEndpoint,
    discovery: DiscoveryRoutes,
    agents: AgentRoutes,
    health: HealthRoutes,
    tools: ToolParts,
    origins: Origins,
) -> ASGIApp:
    """Return the whole application."""
    readers: dict[str, ASGIApp] = {EVENTS_PATH: events, AUDIT_PATH: audit}
    ordinary = ordinary_routes(command, readers, discovery, agents, health, tools)
    return Cors(Front(command, tools, readers, ordinary), origins)


class Front:
    """Routes commands and streams directly to their endpoints, and everything else through FastAPI."""

    def __init__(self, command: ASGIApp, tools: ToolParts, readers: Mapping[str, ASGIApp], rest: ASGIApp) -> None:
        self._command = command
        self._tools = tools
        self._readers = readers
        self._rest = rest

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return a coroutine that serves one request. It raises nothing."""
        if scope["path"] == COMMAND_PATH and scope["method"] == "POST":
            return self._command(scope, receive, send)
        if scope["path"].startswith(TOOL_PATH) and scope["method"] == "POST":
            return self._tools.calls(scope, receive, send)
        if scope["path"] == MCP_PATH:
            return self._tools.mcp(scope, receive, send)
        if scope["path"] in METADATA_PATHS:
            return self._tools.metadata(scope, receive, send)
        if scope["path"] in self._readers and scope["method"] in READING_METHODS:
            return self._readers[scope["path"]](scope, receive, send)
        return self._serve_ordinary(scope, receive, send)

    async def _serve_ordinary(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # for HEAD; the server knows the real method and writes no body
        try:
            await self._rest(scope, receive, send)
        except Exception:  # FastAPI has answered, and raises again so that the error is logged
            log.exception("%s %r failed", scope["method"], scope["path"])


class Cors(CORSMiddleware):
    """CORS (the Fetch standard) with our own matcher of origins, and always without credentials."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        super().__init__(
            app,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=REQUEST_HEADERS,
            expose_headers=EXPOSED_HEADERS,
        )
        self._origins = origins

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # type: ignore[override]
        """Return the coroutine that serves one request. Only requests with an `Origin` come from web pages."""
        for name, _ in scope["headers"]:
            if name == b"origin":
                writing.withdraw(scope)
                return super().__call__(scope, receive, send)
        return self.app(scope, receive, send)

    def is_allowed_origin(self, origin: str) -> bool:
        """Tell whether pages of this origin may read our answers."""
        return self._origins.allows(origin)


def ordinary_routes(
    command: CommandEndpoint,
    readers: Mapping[str, ASGIApp],
    discovery: DiscoveryRoutes,
    agents: AgentRoutes,
    health: HealthRoutes,
    tools: ToolParts,
) -> Application:
    """Return the FastAPI application alone, without our middleware."""
    app = Application()
    app.add_api_route("/api/capabilities", discovery.capabilities, **schemas.CAPABILITIES)
    app.add_api_route("/api/clients", discovery.clients, **schemas.CLIENTS)
    app.add_api_route("/api/clients/{client_id}", discovery.client, **schemas.CLIENT)
    app.add_api_route("/api/clients/{client_id}", discovery.disconnect, methods=["DELETE"], **schemas.DISCONNECT)
    app.add_api_route("/api/agents/{sub:path}", agents.disconnect_agent, methods=["DELETE"], **schemas.DISCONNECT_AGENT)
    app.add_api_route(TOOLS_PATH, tools.routes.tools, **tool_schemas.TOOLS)
    app.add_api_route(SOCKET_PATH, discovery.socket, **schemas.SOCKET)
    for number, path in enumerate(SDK_SOCKET_PATHS, 1):
        app.add_api_route(path, discovery.socket, operation_id=f"sdkSocket{number}", **schemas.SDK_SOCKET)
    app.add_api_route("/healthz", health.alive, **schemas.ALIVE)
    app.add_api_route("/readyz", health.ready, **schemas.READY)
    app.add_api_route(METRICS_PATH, health.metrics, **schemas.METRICS)
    app.router.routes.append(Route(COMMAND_PATH, command, methods=["POST"]))
    app.router.routes.append(Route(tool_schemas.CALL_PATH, tools.calls, methods=["POST"]))
    app.router.routes.append(Route(MCP_PATH, tools.mcp, methods=["POST"]))
    app.router.routes.extend(Route(path, endpoint, methods=["GET"]) for path, endpoint in readers.items())
    docs.install(app)
    app.add_exception_handler(BridgeError, _tell)
    app.add_exception_handler(HTTPException, _tell_http)
    app.add_exception_handler(Exception, _tell_internal)
    return app


async def _tell(request: Request, error: Exception) -> Response:
    return problem_response(http_answer_of(cast("BridgeError", error)))


async def _tell_http(request: Request, error: Exception) -> Response:
    """Answer the router's errors: an unknown path, or a method that the path does not have."""
    status = cast("HTTPException", error).status_code
    if status != HTTPStatus.METHOD_NOT_ALLOWED:
        return problem_response(
            http_answer_of(HttpFault(status, "there is nothing at this path; /docs lists all paths"))
        )
    allowed = ", ".join(sorted(_methods(request)))
    response = problem_response(http_answer_of(HttpFault(status, f"this path takes {allowed} only")))
    response.headers["allow"] = allowed
    return response


def _methods(request: Request) -> set[str]:
    """Return the methods of all routes of a path, because the router's own `Allow` names only the first route's."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    matching = [route.methods or set() for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    methods = set[str]().union(*matching)
    return methods if methods and "GET" not in methods else methods | READING_METHODS  # no route: a file


async def _tell_internal(request: Request, error: Exception) -> Response:
    return problem_response(http_answer_of(Internal("the request failed; the log of the process says why")))
