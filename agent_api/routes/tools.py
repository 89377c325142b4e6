"""Tools over HTTP: `GET /api/tools` in the format of a model provider, `POST /api/tools/{name}` to call one."""

from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agent_api.commands.orders import Order, order_of
from agent_api.http.asgi import Head
from agent_api.http.problems import HttpAnswer
from agent_api.http.request_counts import TOOL_PATH
from agent_api.http.responses import tagged_response
from agent_api.http.sharing import share_turns
from agent_api.routes.command import CommandEndpoint, Reading
from agent_api.routes.tools_query import (
    CLIENT_ID,
    FORMAT,
    NARROWING,
    TIMEOUT_MS,
    format_of,
    narrowing_of,
    read_parameters,
    single,
    timeout_of,
)
from agent_api.settings import ApiSettings
from agent_api.tools.calls import CallOptions
from agent_api.tools.catalogue import ToolCatalogue
from agent_api.tools.formats import FORMATS
from agent_api.tools.toolbox import OwnResult, Toolbox
from protocol import codec
from protocol.access import Principal, require_agent
from protocol.runtime.tokens import Verifier, bearer

PATH = "/api/tools"
_any = msgspec.json.Decoder(msgspec.Raw)


class ToolRoutes:
    """Lists tools."""

    def __init__(self, verifier: Verifier, catalogue: ToolCatalogue) -> None:
        self._verifier = verifier
        self._catalogue = catalogue

    async def tools(self, request: Request) -> Response:
        """List the tools that the caller may use."""
        principal = await self._verifier.verify(bearer(*request.headers.getlist("authorization")))
        share_turns(request.scope, principal)
        require_agent(principal)
        parameters = single(request.query_params.multi_items(), (FORMAT, *NARROWING))
        listing = await self._catalogue.listing(principal, narrowing_of(parameters))
        return tagged_response(request, {"tools": FORMATS[format_of(parameters)](listing.tools)}, {})


class ToolCallEndpoint:
    """Calls tools. Only the body differs from `POST /api/command`."""

    def __init__(self, settings: ApiSettings, command: CommandEndpoint, toolbox: Toolbox) -> None:
        self._settings = settings
        self._command = command
        self._toolbox = toolbox

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Its method and the beginning of its path have been checked."""
        name = scope["path"].removeprefix(TOOL_PATH)
        reading = Reading(partial(self._read, name, scope["query_string"]), partial(self._toolbox.named, name))
        await self._command.serve(scope, receive, send, reading)

    async def _read(self, name: str, query: bytes, data: bytes, head: Head, principal: Principal) -> Order | HttpAnswer:
        parameters = read_parameters(query, (CLIENT_ID, TIMEOUT_MS))
        options = CallOptions(parameters.get(CLIENT_ID), timeout_of(parameters), head.idempotency_key)
        taken = await self._toolbox.take(principal, name, codec.decode(_any, data), options)
        if isinstance(taken, OwnResult):
            return HttpAnswer(200, codec.encode({"success": True, "result": taken.value}))
        return order_of(taken, self._settings.command_timeout_ms, self._settings.max_command_timeout_ms)
