"""Turns the call of a tool into a command, or answers it if the tool is our own. MCP and HTTP both use it."""

from typing import Any

import msgspec

from agent_api.commands.orders import CommandBody
from agent_api.tools import names
from agent_api.tools.calls import NO_OPTIONS, Arguments, CallOptions, command_of
from agent_api.tools.catalogue import ToolCatalogue
from agent_api.tools.formats import mcp
from agent_api.tools.search import find_clients, find_tools
from agent_api.tools.views import EVERYTHING, Narrowing, ToolView
from protocol import codec
from protocol.access import Principal
from protocol.errors import InvalidParameters


class OwnResult(msgspec.Struct, frozen=True):
    """The result of one of our own tools."""

    value: Any


class _FindTools(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    query: str


class _FindClients(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tool: str
    query: str = ""


class _CallTool(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    name: str
    arguments: Arguments = {}
    client_id: str | None = None


_find_tools = msgspec.json.Decoder(_FindTools)
_find_clients = msgspec.json.Decoder(_FindClients)
_call_tool = msgspec.json.Decoder(_CallTool)


class Toolbox:
    """Takes calls of tools."""

    def __init__(self, catalogue: ToolCatalogue) -> None:
        self._catalogue = catalogue

    async def take(
        self,
        principal: Principal,
        name: str,
        arguments: Arguments,
        options: CallOptions = NO_OPTIONS,
        narrowing: Narrowing = EVERYTHING,
    ) -> CommandBody | OwnResult:
        """Return the command for a call, or its result. Raises as `command_of()` does, and `Unavailable`."""
        view = await self._catalogue.view(principal, narrowing)
        if name not in names.RESERVED:
            return command_of(view, name, arguments, options)
        data = codec.encode(arguments)
        if name == names.CALL_TOOL:
            return _called(view, codec.decode(_call_tool, data, InvalidParameters), options)
        if name == names.FIND_CLIENTS:
            wanted = codec.decode(_find_clients, data, InvalidParameters)
            return OwnResult(await find_clients(view, wanted.tool, wanted.query))
        query = codec.decode(_find_tools, data, InvalidParameters).query
        return OwnResult({"tools": mcp(await find_tools(view, query))})


def _called(view: ToolView, call: _CallTool, options: CallOptions) -> CommandBody:
    return command_of(view, call.name, call.arguments, options._replace(client_id=call.client_id or options.client_id))
