"""What `GET /api/audit` takes and answers, in OpenAPI's words."""

from typing import Any

from agent_api.audit.queries import DEFAULT_LIMIT, MAX_LIMIT, MAX_TEXT_CHARS, OUTCOMES
from agent_api.contract import header, parameter, ref, refusals
from protocol.audit import AGENT_API, GATEWAY
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
        "id": {"type": "string", "description": "by which a reader goes on from here"},
        "at": {"type": "string", "description": "when the outcome was decided"},
        "tenant": {"type": "string"},
        "clientId": {"type": "string"},
        "user": {"type": "string", "description": "whose client it is"},
        "app": {"type": "string"},
        "agent": {"type": "string", "description": "the `sub` of the caller's token"},
        "role": {"type": "string"},
        "target": {"type": "string"},
        "action": {"type": "string"},
        "requestId": {"type": "string"},
        "via": {"enum": ["agent_api", "console", "nats"], "description": "how the command came to the gateway"},
        "outcome": {"enum": list(OUTCOMES)},
        "code": {"type": "string", "description": "the application's own code, where it answered with an error"},
        "replayed": {"type": "boolean", "description": "answered with the outcome of an earlier request"},
        "durationMs": {"type": "integer"},
        "by": {"enum": [GATEWAY, AGENT_API], "description": "who decided the outcome"},
        "parameters": {"description": "where AGENTBRIDGE_AUDIT_PARAMETERS is on; of large ones the size"},
    },
}
AUDIT: dict[str, Any] = {
    "summary": "Who called what, and how that ended (admin)",
    "description": (
        "Records of the token's tenant, newest first. With `Accept: text/event-stream` server-sent events without an "
        "end instead, oldest first: `record`, `gap` (some may have been missed), and `end`, with an error's code."
    ),
    "operationId": "audit",
    "security": [{"bearer": []}],
    "parameters": [
        parameter(
            "clientId",
            "only commands for this client; `_none`: for no known one",
            _CLIENT,
        ),
        parameter("agent", "only this caller's: the `sub` of its token", _TEXT),
        parameter("target", "only commands with this target", _TEXT),
        parameter("outcome", "only commands that ended so", {"enum": list(OUTCOMES)}),
        parameter("since", "only what ended at this instant or later", _INSTANT),
        parameter("until", "only what ended at this instant or before", _INSTANT),
        parameter(
            "limit",
            f"at most so many records; {DEFAULT_LIMIT} without it",
            {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
        ),
        parameter("after", "an id: go on with what is older, in a stream with what came later", _ID),
        parameter("lastEventId", "as `after`, and before it: what libraries send that cannot send the header", _ID),
        {
            "name": "Last-Event-ID",
            "in": "header",
            "description": "for a stream as `after`, and before it: what readers send when they come back",
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
            "headers": {"Link": header("the next page, where there may be older records")},
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
