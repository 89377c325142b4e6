"""Turns the call of a tool into a command, or answers it if the tool is our own. MCP and HTTP both use it."""

from typing import Any

import msgspec

from agent_api.commands.audit import CommandTarget
from agent_api.commands.orders import CommandBody
from agent_api.tools import names
from agent_api.tools.calls import NO_OPTIONS, CallOptions, command_of
from agent_api.tools.catalogue import ToolCatalogue
from agent_api.tools.formats import mcp
from agent_api.tools.search import find_clients, find_tools
from agent_api.tools.slices import Slices
from agent_api.tools.views import EVERYTHING, Narrowing, ToolView
from protocol import codec
from protocol.access import Principal
from protocol.errors import InvalidParameters, InvalidRequest


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
    arguments: msgspec.Raw = codec.EMPTY_OBJECT
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
        arguments: msgspec.Raw,
        options: CallOptions = NO_OPTIONS,
        narrowing: Narrowing = EVERYTHING,
    ) -> CommandBody | OwnResult:
        """Return the command that a call is, or its result. Raises what `command_of()` does, and `Unavailable`.

        Raises `InvalidRequest` if the arguments are no object.
        """
        if not codec.is_object(arguments):
            raise InvalidRequest("the arguments of a tool must be an object")
        view = await self._catalogue.view(principal, narrowing)
        if name not in names.RESERVED:
            return command_of(view, name, arguments, options)
        data = codec.raw_bytes(arguments)
        if name == names.CALL_TOOL:
            return _called(view, codec.decode(_call_tool, data, InvalidParameters), options)
        if name == names.FIND_CLIENTS:
            wanted = codec.decode(_find_clients, data, InvalidParameters)
            return OwnResult(await Slices().run(find_clients(view, wanted.tool, wanted.query)))
        query = codec.decode(_find_tools, data, InvalidParameters).query
        return OwnResult({"tools": mcp(await Slices().run(find_tools(view, query)))})

    def named(
        self,
        name: str,
        principal: Principal,
        arguments: msgspec.Raw = codec.EMPTY_OBJECT,
        narrowing: Narrowing = EVERYTHING,
    ) -> CommandTarget | None:
        """Return the target of a call that was refused; its own name if there is no such tool."""
        name = _inner_name(arguments) or name if name == names.CALL_TOOL else name
        view = self._catalogue.present(principal, narrowing)
        group = None if view is None else view.find(name)
        if group is not None:
            return CommandTarget(group.definition.target, group.definition.action)
        return CommandTarget(name[: names.MAX_CHARS]) if name else None


def _inner_name(arguments: msgspec.Raw) -> str:
    """Return the name of the tool that `call_tool` is to call, if it can be read."""
    try:
        return codec.decode(_call_tool, codec.raw_bytes(arguments)).name
    except InvalidRequest:
        return ""


def _called(view: ToolView, call: _CallTool, options: CallOptions) -> CommandBody:
    if not codec.is_object(call.arguments):
        raise InvalidParameters("`arguments`: must be an object", details={"path": "/arguments"})
    return command_of(view, call.name, call.arguments, options._replace(client_id=call.client_id or options.client_id))
