"""Large lists and large results hold the event loop for a moment only, in each era."""

import json
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from support.holds import MAX_HOLD_SECONDS, longest_hold
from support.settings import settings_for

from agent_api.commands.orders import CommandBody
from agent_api.mcp.answers import AnswerWriter
from agent_api.mcp.callers import McpCaller, McpHead
from agent_api.mcp.context import McpContext
from agent_api.mcp.library import InstalledLibrary
from agent_api.mcp.messages import RpcAnswer, RpcMessage
from agent_api.settings import ApiSettings
from agent_api.tools.listing import ToolListing
from agent_api.tools.views import EVERYTHING, Tool
from protocol.access import AGENT, Principal
from protocol.messages import CommandFields, CommandResponse

MODERN, LEGACY = "2026-07-28", "2025-11-25"
META = {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}
TEXTS = {f"p{n}": {"type": "string", "description": f"the {n}th of all", "enum": ["a", "b"]} for n in range(150)}
TOOLS = tuple(Tool(f"f{n}", "", "", {"type": "object", "properties": {**TEXTS}}, {}) for n in range(128))
# A megabyte each: very many small values, one long text, and very many items of a result in MCP's own shape.
ANSWERS = {
    "lists": b"[%b[]]" % (b"[]," * 300_000),
    "objects": b'{"a":[%b{}]}' % (b"{}," * 300_000),
    "text": b'"%b"' % (b"x" * 900_000),
    "items": b'{"content":[%b{"type":"text","text":""}]}' % (b'{"type":"text","text":""},' * 34_000),
}


class Catalogue:
    """Lists many tools."""

    async def listing(self, *_: object) -> ToolListing:
        return ToolListing(TOOLS, b"")


class Toolbox:
    """Takes any call."""

    async def take(self, *_: object) -> Any:
        return CommandBody(CommandFields(target="f"), client_id="c1")


class Sender:
    """Has an application's answer to any command."""

    def __init__(self, answer: bytes) -> None:
        self._answer = msgspec.Raw(answer)

    async def send(self, *_: object) -> CommandResponse:
        return CommandResponse(request_id="r", status="success", result=self._answer, duration_ms=1)


async def answered(method: str, version: str, answer: bytes = b"null", **params: Any) -> Any:
    """Return the longest hold of the loop, and the result."""
    parts = {"catalogue": Catalogue(), "toolbox": Toolbox(), "sender": Sender(answer)}
    library = InstalledLibrary(cast("McpContext", SimpleNamespace(settings=settings_for(ApiSettings), **parts)))
    headers = {"mcp-protocol-version": version, "mcp-method": method, "mcp-name": params.get("name", "")}
    caller = McpCaller(Principal("agent", AGENT, "default", float("inf")), None, EVERYTHING)
    answers: list[RpcAnswer] = []

    async def work() -> None:
        message = RpcMessage(method, 1, {**params, "_meta": META})
        answers.append(await library.answer(caller, message, McpHead(headers, ()), cast("AnswerWriter", None)))

    await work()  # imports and caches
    hold = await longest_hold(work())
    return hold, json.loads(answers[-1].body)["result"]


@pytest.mark.parametrize("version", [MODERN, LEGACY])
async def test_list_of_large_tools(version: str) -> None:
    hold, result = await answered("tools/list", version)
    assert len(result["tools"]) == len(TOOLS)
    assert result["tools"][-1] == {"name": "f127", "inputSchema": TOOLS[-1].schema}
    assert hold < MAX_HOLD_SECONDS


@pytest.mark.parametrize("version", [MODERN, LEGACY])
@pytest.mark.parametrize("kind", list(ANSWERS))
async def test_large_result(version: str, kind: str) -> None:
    hold, result = await answered("tools/call", version, ANSWERS[kind], name="f")
    assert hold < MAX_HOLD_SECONDS
    if kind == "items":
        assert len(result["content"]) == 34_001
    elif kind == "text":
        assert result["content"] == [{"type": "text", "text": json.loads(ANSWERS[kind])}]
    else:
        assert json.loads(result["content"][0]["text"]) == json.loads(ANSWERS[kind])
        assert ("structuredContent" in result) == (version == MODERN or kind == "objects")
