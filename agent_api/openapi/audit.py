"""Parameters and answers of `GET /api/audit`, for OpenAPI."""

from typing import Any

from agent_api.openapi.schemas import AUDIT_GROUP, header, parameter, ref, refusals
from agent_api.routes.audit_query import DEFAULT_LIMIT, MAX_LIMIT, MAX_TEXT_CHARS, OUTCOMES
from protocol.audit import AGENT_API, GATEWAY, REGISTRY, USER
from protocol.errors import Code

PATH = "/api/audit"
_TEXT = {"type": "string", "maxLength": MAX_TEXT_CHARS}
_ID = {"type": "string", "pattern": "^[0-9]{1,32}-(0|[1-9][0-9]{0,18})$"}
_CLIENT = {"type": "string", "pattern": "^(_none|[A-Za-z0-9][A-Za-z0-9_-]{0,63})$"}
_INSTANT = {"type": "string", "format": "date-time"}

RECORD: dict[str, Any] = {
    "type": "object",
    "description": "A command's outcome, as the party that decided it recorded it. What was not known is absent.",
    "required": ["id", "at", "tenant", "outcome", "durationMs", "by"],
    "properties": {
        "id": {"type": "string", "description": "from which a reader can go on"},
        "at": {"type": "string", "description": "when the outcome was decided"},
        "tenant": {"type": "string"},
        "clientId": {"type": "string"},
        "user": {"type": "string", "description": "whose client it is"},
        "app": {"type": "string"},
        "agent": {"type": "string", "description": "the `sub` of the caller's token"},
        "role": {"type": "string"},
        "disconnected": {
            "type": "string",
            "description": "the `sub` of an agent that the administrator `agent` has disconnected; there is no target",
        },
        "target": {"type": "string"},
        "action": {"type": "string"},
        "requestId": {"type": "string"},
        "outcome": {"enum": list(OUTCOMES)},
        "code": {"type": "string", "description": "the application's own code, if it answered with an error"},
        "replayed": {"type": "boolean", "description": "answered with the outcome of an earlier request"},
        "confirmed": {"enum": [USER], "description": "the application says that it has asked its user"},
        "durationMs": {"type": "integer"},
        "count": {
            "type": "integer",
            "minimum": 2,
            "description": "number of refusals of one agent and outcome, above 20 a second; else absent",
        },
        "by": {"enum": [GATEWAY, AGENT_API, REGISTRY], "description": "who decided the outcome"},
        "parameters": {"description": "only if AGENTBRIDGE_AUDIT_PARAMETERS is on; for large ones the size"},
    },
}
AUDIT: dict[str, Any] = {
    "tags": [AUDIT_GROUP],
    "summary": "Read the record of all commands (admin)",
    "description": (
        "Records of the token's tenant, newest first. With `Accept: text/event-stream` server-sent events without an "
        "end instead, oldest first: `record`, `gap` (some may have been missed), and `end`, with an error's code."
    ),
    "operationId": "audit",
    "security": [{"bearer": []}],
    "parameters": [
        parameter(
            "clientId",
            "only commands for this client; `_none`: without a known client",
            _CLIENT,
        ),
        parameter("agent", "only commands of this caller: the `sub` of its token", _TEXT),
        parameter("target", "only commands with this target", _TEXT),
        parameter("outcome", "only commands with this outcome", {"enum": list(OUTCOMES)}),
        parameter("since", "only commands that ended at this instant or later", _INSTANT),
        parameter("until", "only commands that ended at this instant or before", _INSTANT),
        parameter(
            "limit",
            f"at most so many records; {DEFAULT_LIMIT} without it",
            {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
        ),
        parameter("after", "an id: go on with older records, in a stream with later ones", _ID),
        parameter("lastEventId", "as `after`, which it overrides; for libraries that cannot send the header", _ID),
        {
            "name": "Last-Event-ID",
            "in": "header",
            "description": "for a stream, as `after`, which it overrides; returning readers send it",
            "schema": {"type": "string"},
        },
    ],
    "responses": {
        "200": {
            "description": "the records, or the stream",
            "content": {
                "application/json": {"schema": {"type": "array", "items": ref("AuditRecord")}},
                "text/event-stream": {"schema": {"type": "string"}},
            },
            "headers": {"Link": header("the next page, if there may be older records")},
        },
        **refusals(
            (
                Code.INVALID_REQUEST,
                Code.UNAUTHENTICATED,
                Code.PERMISSION_DENIED,
                Code.CONFLICT,
                Code.OVERLOADED,
                Code.INTERNAL,
                Code.UNAVAILABLE,
            )
        ),
    },
}
