"""The list for a principal: at most 128 tools, oldest first, and our own tools that find and call the others."""

import hashlib
from collections.abc import Generator

import msgspec

from agent_api.tools import names
from agent_api.tools.views import MAX_LISTED_CLIENTS, MAX_SHOWN, Tool, ToolView
from protocol import codec

_TEXT = {"type": "string"}
OWN_TOOLS = {
    names.FIND_TOOLS: Tool(
        names.FIND_TOOLS,
        "Find tools",
        "Finds tools that are not listed here, because there are too many. Call them by call_tool.",
        {
            "type": "object",
            "properties": {"query": {**_TEXT, "description": "words of a name or a description"}},
            "required": ["query"],
        },
        {"readOnlyHint": True},
    ),
    names.CALL_TOOL: Tool(
        names.CALL_TOOL,
        "Call a tool",
        "Calls a tool that find_tools has found, with the arguments that its inputSchema describes.",
        {
            "type": "object",
            "properties": {
                "name": {**_TEXT, "description": "the name that find_tools gave"},
                "arguments": {"type": "object", "description": "the tool's arguments"},
                "clientId": {**_TEXT, "description": "which client, if several offer it"},
            },
            "required": ["name"],
        },
        {},
    ),
    names.FIND_CLIENTS: Tool(
        names.FIND_CLIENTS,
        "Find clients",
        "Finds the clients that offer a tool, by user, application, title or id.",
        {
            "type": "object",
            "properties": {
                "tool": {**_TEXT, "description": "the name of the tool"},
                "query": {**_TEXT, "description": "a part of the user, application, title or id; left out, any client"},
            },
            "required": ["tool"],
        },
        {"readOnlyHint": True},
    ),
}


class ToolListing(msgspec.Struct, frozen=True):
    """The listed tools, and a digest of the list."""

    tools: tuple[Tool, ...]
    digest: bytes


def listing_of(view: ToolView) -> Generator[None, None, ToolListing]:
    """Return the list of a view, in steps."""
    yield from view.prepare()
    groups, more = yield from view.shown()
    shown: list[Tool] = []
    for group in groups:
        shown.append(view.tool(group))
        yield
    own = list(OWN_TOOLS) if more else []
    if not more and any(tool.clients > MAX_LISTED_CLIENTS for tool in shown):
        own = [names.FIND_CLIENTS]
    tools = (*shown[: MAX_SHOWN - len(own)], *(OWN_TOOLS[name] for name in own))
    digest = hashlib.sha256()
    for tool in tools:
        digest.update(codec.encode(tool))
        yield
    return ToolListing(tools, digest.digest())
