"""Parameters and answers of `GET /api/events`, for OpenAPI."""

from typing import Any

from agent_api.events.filters import MAX_NAMES, MAX_TEXT_CHARS
from agent_api.openapi.schemas import EVENTS_GROUP, header, parameter, refusals
from agent_api.routes.events_query import CLIENTS_CHOICES
from protocol.errors import Code

PATH = "/api/events"
_TEXT = {"type": "string", "maxLength": MAX_TEXT_CHARS}
_NAMES = {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_CHARS}}

EVENTS: dict[str, Any] = {
    "tags": [EVENTS_GROUP],
    "summary": "Read events and changes of clients as they happen",
    "description": (
        "Server-sent events, without an end: `event` (an application's event), `client` (a client has connected, "
        "changed or gone), `gap` (some may have been missed), and `end`, with an error's code, as the last one."
    ),
    "operationId": "events",
    "security": [{"bearer": []}],
    "parameters": [
        parameter("clientId", "only this client", {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"}),
        parameter("user", "only clients of this user: the `sub` of the application's token", _TEXT),
        parameter("app", "only clients of this application", _TEXT),
        parameter(
            "event", "only events with this name; `*` matches any text. Repeatable.", {**_NAMES, "maxItems": MAX_NAMES}
        ),
        parameter(
            "clients",
            "whether changes of clients are wanted; `only` for these alone. Without it: unless events are named.",
            {"enum": list(CLIENTS_CHOICES)},
        ),
        parameter("since", "an id: begin after it"),
        parameter("lastEventId", "as `since`, which it overrides; for libraries that cannot send the header"),
        {
            "name": "Last-Event-ID",
            "in": "header",
            "description": "as `since` and `lastEventId`, which it overrides; returning readers send it",
            "schema": {"type": "string"},
        },
    ],
    "responses": {
        "200": {
            "description": "the stream",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "headers": {"X-Accel-Buffering": header("`no`: proxies must not buffer messages", required=True)},
        },
        **refusals(
            (
                Code.INVALID_REQUEST,
                Code.UNAUTHENTICATED,
                Code.PERMISSION_DENIED,
                Code.OVERLOADED,
                Code.INTERNAL,
                Code.UNAVAILABLE,
            )
        ),
    },
}
