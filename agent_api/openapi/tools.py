"""Parameters, bodies and answers of the routes for tools, for OpenAPI."""

from typing import Any

from agent_api.openapi import examples
from agent_api.openapi.schemas import (
    COMMAND,
    COMMANDS,
    REPLAYED,
    header,
    json_of,
    parameter,
    ref,
    refusal,
    refusals,
    route,
    success,
)
from agent_api.tools.calls import MAX_TIMEOUT_MS
from agent_api.tools.formats import FORMATS
from agent_api.tools.views import MAX_SHOWN
from protocol.errors import Code

CALL_PATH = "/api/tools/{name}"
_SECURED: dict[str, Any] = {"security": [{"bearer": []}]}
_TAG = {"ETag": header("an entity tag of this content", required=True)}
_CODES = (Code.INVALID_REQUEST, Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.INTERNAL, Code.UNAVAILABLE)
_APP = parameter("app", "only tools of this application")
_TOOLS = parameter(
    "tools",
    f"only tools with these names, 1 to {MAX_SHOWN} with commas between",
    {"type": "string", "pattern": f"^[^,]+(,[^,]+){{0,{MAX_SHOWN - 1}}}$"},
)

TOOLS = route(
    COMMANDS,
    "List what the token may call as tools of a language model",
    {
        "200": success(
            "the tools, as the provider takes them",
            {
                "type": "object",
                "required": ["tools"],
                "properties": {"tools": {"type": "array", "items": {"type": "object"}}},
            },
            _TAG,
        ),
        "304": {"description": "unchanged since `If-None-Match`", "headers": _TAG},
        **refusals(_CODES),
    },
    **_SECURED,
    parameters=[parameter("format", "whose words", {"enum": list(FORMATS), "default": "mcp"}), _TOOLS, _APP],
)
CALL: dict[str, Any] = {
    "tags": [COMMANDS],
    "summary": "Call a tool; the body has its arguments",
    "operationId": "call_tool",
    **_SECURED,
    "parameters": [
        {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}},
        parameter("clientId", "which client, if several offer the tool"),
        parameter(
            "timeoutMs",
            "milliseconds until the call is answered `timeout`, at most as many as the agent API allows",
            {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS},
        ),
        *COMMAND["parameters"],
    ],
    "requestBody": {"required": True, "content": json_of({"type": "object"})},
    "responses": {
        "200": success(
            "what the application answered, or what a tool of ours found",
            {
                "anyOf": [
                    ref("CommandResult"),
                    {
                        "type": "object",
                        "required": ["success", "result"],
                        "properties": {"success": {"const": True}, "result": {}},
                    },
                ]
            },
            REPLAYED,
        ),
        **refusals((code for code in Code if code is not Code.INVALID_FRAME), REPLAYED),
        "415": refusal(description="`invalid_request`: the body is not `application/json`", example=examples.NOT_JSON),
    },
}
MCP: dict[str, Any] = {
    "tags": [COMMANDS],
    "summary": "Speak the Model Context Protocol",
    "description": "Streamable HTTP, revisions 2024-11-05 to 2026-07-28: one message of JSON-RPC 2.0 in each body.",
    "operationId": "mcp",
    **_SECURED,
    "parameters": [_TOOLS, _APP],
    "requestBody": {"required": True, "content": json_of({"type": "object"})},
    "responses": {
        "200": {
            "description": "the answer, alone or as the last message of a stream",
            "content": {
                "application/json": {"schema": {"type": "object"}},
                "text/event-stream": {"schema": {"type": "string"}},
            },
        },
        "202": {"description": "a notification was taken"},
        **refusals(code for code in Code if code is not Code.INVALID_FRAME),
        "406": refusal(description="`invalid_request`: `Accept` lacks one of both types", example=examples.NOT_JSON),
        "415": refusal(description="`invalid_request`: the body is not `application/json`", example=examples.NOT_JSON),
        "501": refusal(description="`invalid_request`: the extra `mcp` is not installed", example=examples.NOT_JSON),
    },
}
