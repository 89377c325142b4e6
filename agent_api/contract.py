"""What each route takes and answers, in OpenAPI's words."""

from collections.abc import Iterable
from typing import Any

from starlette.responses import Response

from agent_api.commands.balance import LOOKED_AT
from agent_api.commands.bodies import MAX_ASKED
from agent_api.http.problems import HEADERS
from protocol.discovery import MAX_PAGE
from protocol.errors import MEANINGS, Code
from protocol.ids import MAX_IDEMPOTENCY_KEY_CHARS, MAX_REQUEST_ID_CHARS
from protocol.runtime.metrics import CONTENT_TYPE

SCHEMA_PATH = "#/components/schemas/{name}"


def ref(name: str) -> dict[str, str]:
    """Return a reference to a schema."""
    return {"$ref": SCHEMA_PATH.format(name=name)}


def json_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a JSON body."""
    return {"application/json": {"schema": schema}}


def refusals(codes: Iterable[Code]) -> dict[str, Any]:
    """Return a response for each status of the codes; all have one body."""
    by_status: dict[int, list[Code]] = {}
    for code in codes:
        by_status.setdefault(MEANINGS[code].http_status, []).append(code)
    return {str(status): refusal(*by_status[status]) for status in sorted(by_status)}


def refusal(*codes: Code, description: str = "") -> dict[str, Any]:
    """Return a response that refuses with one of the codes, and the header that goes with them."""
    told = description or ", ".join(f"`{code.value}`" for code in codes)
    names = [HEADERS[code][0].decode() for code in codes if code in HEADERS]
    headers = {name: header(_MEANINGS[name], required=True) for name in names}
    return _with(headers, description=told, content=json_of(ref("Problem")))


def success(description: str, schema: dict[str, Any], headers: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a response that answers."""
    return _with(headers, description=description, content=json_of(schema))


def parameter(name: str, description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a query parameter."""
    return {"name": name, "in": "query", "description": description, "schema": schema or {"type": "string"}}


def header(description: str, *, required: bool = False) -> dict[str, Any]:
    """Return a header of a response."""
    return {"description": description, "required": required, "schema": {"type": "string"}}


def route(summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the arguments by which FastAPI describes a route."""
    return {"summary": summary, "responses": responses, "openapi_extra": more}


def _with(headers: dict[str, Any] | None, **parts: Any) -> dict[str, Any]:
    return {**parts, "headers": headers} if headers else parts


def _way(*fields: str, **named: str) -> dict[str, Any]:
    """Return a schema of bodies that say whom they mean by these fields alone; `named` ones have a type and must be."""
    others = {name: {"const": unset} for name, unset in _UNSET.items() if name not in (*fields, *named)}
    return {"required": list(named), "properties": others | {name: {"type": kind} for name, kind in named.items()}}


def _nullable(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": [kind, "null"], **more}


_UNSET = {"clientId": None, "any": False, "clientIds": None, "match": None, "gather": None}
_MEANINGS = {"www-authenticate": "the scheme, `Bearer`", "retry-after": "seconds to wait before a repetition"}

CAPABILITY_LIST = {"type": "array", "items": ref("Capability")}
SCHEMAS: dict[str, Any] = {
    "Capability": {
        "type": "object",
        "description": "A function or a component that a client offers, with all the fields that the client sent.",
        "required": ["type"],
        "properties": {
            "type": {"enum": ["function", "component"]},
            "name": {"type": "string", "description": "a function's target"},
            "id": {"type": "string", "description": "a component's target"},
            "description": {"type": "string"},
            "parameters": {"description": "JSON Schema of a function's parameters"},
            "actions": {"description": "a component's actions"},
            "permissions": {"type": "array", "items": {"type": "string"}},
            "rateLimit": {"description": "calls a second, or `{limit, perSeconds}`; all agents share them"},
        },
    },
    "Command": {
        "type": "object",
        "required": ["target"],
        "properties": {
            "target": {"type": "string", "minLength": 1, "maxLength": 256, "description": "a function, a component"},
            "action": _nullable("string", maxLength=256, description="what a component is to do"),
            "parameters": {"type": "object", "default": {}},
            "requestId": _nullable("string", minLength=1, maxLength=MAX_REQUEST_ID_CHARS, pattern="^[!-~]+$"),
            "timeoutMs": _nullable("integer", exclusiveMinimum=0),
            "idempotencyKey": _nullable(
                "string",
                minLength=1,
                maxLength=MAX_IDEMPOTENCY_KEY_CHARS,
                pattern="^[!-~]+$",
                description="as the header `Idempotency-Key`",
            ),
        },
    },
    "Gathered": {
        "type": "object",
        "required": ["results", "complete"],
        "properties": {
            "results": {
                "type": "object",
                "description": "every client that was asked",
                "additionalProperties": ref("Response"),
            },
            "complete": {"type": "boolean", "description": "false where a client was still waited for at the end"},
        },
    },
    "Response": {
        "type": "object",
        "description": "One client's answer: `result` with the status `success`, `error` with `error`.",
        "required": ["requestId", "status", "clientId", "durationMs"],
        "properties": {
            "requestId": {"type": "string"},
            "status": {"enum": ["success", "error"]},
            "result": {},
            "error": {
                "type": "object",
                "required": ["code", "message", "retryable"],
                "properties": {
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                    "retryable": {"type": "boolean", "description": "the command was certainly not executed"},
                    "details": {},
                },
            },
            "clientId": {"type": "string"},
            "durationMs": {"type": "integer"},
        },
    },
    "Match": {
        "type": "object",
        "description": "Every field narrows; as the filters of `/api/clients`.",
        "additionalProperties": False,
        "properties": {
            "user": _nullable("string", description="the `sub` of the application's token"),
            "app": _nullable("string"),
            "metadata": {
                "type": "object",
                "description": "values that the client's metadata must have",
                "additionalProperties": {"type": ["string", "number", "boolean"]},
            },
        },
    },
    "CommandProgress": {
        "type": "object",
        "description": "How far a command has come. `seq` counts from 1.",
        "required": ["requestId", "seq", "progress"],
        "properties": {
            "requestId": {"type": "string"},
            "clientId": {"type": "string"},
            "seq": {"type": "integer", "minimum": 1},
            "progress": {"type": "number"},
            "total": {"type": "number"},
            "message": {"type": "string"},
            "data": {"description": "anything that the application adds"},
        },
    },
    "CommandBody": {
        "type": "object",
        "required": ["command"],
        "properties": {
            "clientId": _nullable("string", description="the client; without any of these, the one that offers it"),
            "command": ref("Command"),
            "timeoutMs": _nullable("integer", exclusiveMinimum=0, description="goes before the command's"),
            "any": {
                "type": "boolean",
                "default": False,
                "description": f"the least busy client that offers the target, of {LOOKED_AT} drawn at random",
            },
            "clientIds": _nullable(
                "array",
                description="all of these clients",
                items={"type": "string"},
                minItems=1,
                maxItems=MAX_ASKED,
                uniqueItems=True,
            ),
            "match": {
                "oneOf": [ref("Match"), {"type": "null"}],
                "description": f"all clients that offer the target and fit, at most {MAX_ASKED}",
            },
            "gather": {
                "oneOf": [{"enum": ["first", "all", None]}, {"type": "integer", "minimum": 1}],
                "description": "how many successes are enough: `first` is 1; `all` waits for every answer",
            },
        },
        "anyOf": [
            _way("clientId"),
            _way("any"),
            _way("gather", clientIds="array"),
            _way("gather", match="object"),
        ],
        "example": {"command": {"target": "addTodo", "parameters": {"title": "milk"}}, "timeoutMs": 5000},
    },
}

_SECURED: dict[str, Any] = {"security": [{"bearer": []}]}
_TOKEN_CODES = (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)
_READING_CODES = (Code.INVALID_REQUEST, *_TOKEN_CODES, Code.INTERNAL, Code.UNAVAILABLE)
_FILTERS = [
    parameter("clientId", "only this client"),
    parameter("name", "only clients that offer this function or component"),
    parameter("user", "only clients of this user: the `sub` of the application's token"),
    parameter("app", "only clients of this application"),
    parameter("metadata.KEY", "only clients whose metadata has this value under KEY, which stands for any key"),
    parameter(
        "limit", "at most so many clients; all without it", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}
    ),
    parameter("after", "only clients whose id sorts after this one, as in the header `Link`"),
]
_LIST_HEADERS = {
    "ETag": header("a name for this content", required=True),
    "Link": header("the next page, where `limit` cut the list"),
}
_UNCHANGED = {"304": {"description": "still what `If-None-Match` names", "headers": _LIST_HEADERS}}
_CLIENT_ID = {"name": "client_id", "in": "path", "required": True, "schema": {"type": "string"}}
_STATUS = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}

CAPABILITIES = route(
    "List what each visible client offers",
    {
        "200": success(
            "capabilities by client id", {"type": "object", "additionalProperties": CAPABILITY_LIST}, _LIST_HEADERS
        ),
        **_UNCHANGED,
        **refusals(_READING_CODES),
    },
    **_SECURED,
    parameters=_FILTERS,
)
CLIENTS = route(
    "List the visible clients",
    {
        "200": success(
            "records in the order of their ids", {"type": "array", "items": ref("ClientRecord")}, _LIST_HEADERS
        ),
        **_UNCHANGED,
        **refusals(_READING_CODES),
    },
    **_SECURED,
    parameters=_FILTERS,
)
CLIENT = route(
    "Get one client",
    {"200": success("its record", ref("ClientRecord")), **refusals((*_READING_CODES, Code.CLIENT_NOT_FOUND))},
    **_SECURED,
    parameters=[_CLIENT_ID],
)
DISCONNECT = {
    "status_code": 204,
    **route(
        "End a client's session (admin)",
        {
            "204": {"description": "ended; the client is out of the lists within a second"},
            **refusals((*_READING_CODES, Code.CLIENT_NOT_FOUND)),
        },
        **_SECURED,
        parameters=[_CLIENT_ID],
    ),
}
SOCKET = route(
    "Open a WebSocket for many commands at once",
    {
        "101": {"description": "the WebSocket is open; a token that does not do is told by its close code"},
        **refusals((*_TOKEN_CODES, Code.INTERNAL, Code.OVERLOADED, Code.UNAVAILABLE)),
        "426": {
            **refusal(description="`invalid_request`: the request asks for no WebSocket"),
            "headers": {"Upgrade": header("`websocket`", required=True)},
        },
    },
    **_SECURED,
)
ALIVE = route("Does the process live?", {"200": success("it does", _STATUS)})
READY = route(
    "Can the process do its work?",
    {"200": success("it can", _STATUS), "503": refusal(Code.UNAVAILABLE, description="what is missing")},
)
METRICS = {
    "response_class": Response,  # FastAPI would describe JSON besides
    **route(
        "What has the process counted?",
        {
            "200": {
                "description": "figures in Prometheus' text format; reach them at the process, for proxies hide them",
                "content": {CONTENT_TYPE: {"schema": {"type": "string"}}},
            }
        },
    ),
}
_ANSWERED = success(
    "what the application answered; what all said, by client id, where several were asked",
    {"anyOf": [ref("CommandResult"), ref("Gathered")]},
    {"Idempotency-Replayed": header("`true` where another request with this idempotency key had it executed")},
)
_STREAMED = {
    "text/event-stream": {
        "schema": {
            "type": "string",
            "description": "with `Accept: text/event-stream`: any number of events `progress`, then one `response`, "
            "whose data are as `x-events` has them",
            "x-events": {
                "progress": ref("CommandProgress"),
                "response": {"anyOf": [ref("CommandResult"), ref("Gathered"), ref("Problem")]},
            },
        }
    }
}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "executes the command once, however often it is sent; quoted or bare, and the same as in the body",
    "schema": {"type": "string", "maxLength": MAX_IDEMPOTENCY_KEY_CHARS, "pattern": "^[!#-~][!-~]*$"},
}
COMMAND = {
    "summary": "Send a command and wait for its answer",
    "operationId": "command",
    **_SECURED,
    "parameters": [_IDEMPOTENCY_KEY],
    "requestBody": {"required": True, "content": json_of(ref("CommandBody"))},
    "responses": {
        "200": {**_ANSWERED, "content": _ANSWERED["content"] | _STREAMED},
        **refusals(code for code in Code if code is not Code.INVALID_FRAME),
        "415": refusal(description="`invalid_request`: the body is not `application/json`"),
    },
}
