"""Parameters, bodies and answers of each route, for OpenAPI."""

from collections.abc import Iterable
from typing import Any

from starlette.responses import Response

from agent_api.commands.least_busy import LOOKED_AT
from agent_api.commands.orders import MAX_ASKED
from agent_api.http.problems import HEADERS
from agent_api.openapi import examples
from agent_api.routes.agents import MAX_SUB_CHARS
from protocol.discovery import MAX_PAGE, MAX_TAGS
from protocol.errors import MEANINGS, RETRYABLE, Code
from protocol.ids import MAX_IDEMPOTENCY_KEY_CHARS, MAX_REQUEST_ID_CHARS
from protocol.messages import MAX_UNIX_MS
from protocol.records import PUBLIC
from protocol.reports import DENIAL_SECONDS, MAX_DENIAL_SECONDS
from protocol.runtime.process.metrics import CONTENT_TYPE

SCHEMA_PATH = "#/components/schemas/{name}"
COMMANDS, CLIENTS_GROUP, EVENTS_GROUP, AUDIT_GROUP, PROCESS = "Commands", "Clients", "Events", "Audit", "Process"
AGENTS_GROUP = "Agents"
GROUPS = [
    {"name": COMMANDS, "description": "Call the capabilities of applications"},
    {"name": CLIENTS_GROUP, "description": "The connected applications and their capabilities"},
    {"name": AGENTS_GROUP, "description": "What administrators do with agents"},
    {"name": EVENTS_GROUP, "description": "What happens in applications, as it happens"},
    {"name": AUDIT_GROUP, "description": "The record of all commands"},
    {"name": PROCESS, "description": "How this process is; no token needed"},
]


def ref(name: str) -> dict[str, str]:
    """Return a reference to a schema."""
    return {"$ref": SCHEMA_PATH.format(name=name)}


def json_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a JSON body."""
    return {"application/json": {"schema": schema}}


def refusals(codes: Iterable[Code], headers: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a response for each status of the codes. All have the same body, and may have these headers."""
    by_status: dict[int, list[Code]] = {}
    for code in codes:
        by_status.setdefault(MEANINGS[code].http_status, []).append(code)
    described = {str(status): refusal(*by_status[status]) for status in sorted(by_status)}
    if headers:
        for response in described.values():
            response["headers"] = response.get("headers", {}) | headers
    return described


def refusal(*codes: Code, description: str = "", example: str = "") -> dict[str, Any]:
    """Return an error response for some codes, with an example of each and the header that goes with them."""
    told = description or ", ".join(f"`{code.value}`" for code in codes)
    names = [HEADERS[code][0].decode() for code in codes if code in HEADERS]
    headers = {name: header(_MEANINGS[name], required=True) for name in names}
    shown = examples.references([example] if example else [code.value for code in codes])
    content = {"application/json": {"schema": ref("Problem"), "examples": shown}}
    return _with(headers, description=told, content=content)


def success(description: str, schema: dict[str, Any], headers: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a success response."""
    return _with(headers, description=description, content=json_of(schema))


def parameter(name: str, description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a query parameter."""
    return {"name": name, "in": "query", "description": description, "schema": schema or {"type": "string"}}


def header(description: str, *, required: bool = False) -> dict[str, Any]:
    """Return a header of a response."""
    return {"description": description, "required": required, "schema": {"type": "string"}}


def route(group: str, summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return FastAPI's arguments for a route."""
    return {"tags": [group], "summary": summary, "responses": responses, "openapi_extra": more}


def _with(headers: dict[str, Any] | None, **parts: Any) -> dict[str, Any]:
    return {**parts, "headers": headers} if headers else parts


def _way(*fields: str, **named: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of bodies that name their clients by these fields only; the `named` ones are required."""
    others = {name: {"const": unset} for name, unset in _UNSET.items() if name not in (*fields, *named)}
    return {"required": list(named), "properties": others | named}


def _nullable(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": [kind, "null"], **more}


_UNSET = {"clientId": None, "any": False, "clientIds": None, "match": None, "gather": None, "acrossUsers": False}
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
        "additionalProperties": False,
        "required": ["target"],
        "properties": {
            "target": {"type": "string", "minLength": 1, "maxLength": 256, "description": "a function, a component"},
            "action": _nullable("string", maxLength=256, description="the component's action"),
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
            "sentAt": _nullable(
                "integer",
                minimum=0,
                maximum=MAX_UNIX_MS,
                description="your clock in Unix milliseconds; two seconds past its timeout a command is not executed",
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
            "complete": {"type": "boolean", "description": "false if a client had not answered at the end"},
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
                    "retryable": {"type": "boolean", "description": RETRYABLE},
                    "details": {},
                },
            },
            "clientId": {"type": "string"},
            "durationMs": {"type": "integer"},
        },
    },
    "AgentDisconnected": {
        "type": "object",
        "required": ["sub", "deniedUntil", "natsConnections"],
        "properties": {
            "sub": {"type": "string"},
            "deniedUntil": {"type": "string", "format": "date-time", "description": "until when it is kept out"},
            "natsConnections": {"type": "integer", "minimum": 0, "description": "how many to NATS were ended"},
        },
    },
    "Match": {
        "type": "object",
        "description": "Every field narrows; as the filters of `/api/clients`.",
        "additionalProperties": False,
        "properties": {
            "user": {"type": "string", "description": "the `sub` of the application's token"},
            "app": {"type": "string"},
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
        "additionalProperties": False,
        "required": ["command"],
        "properties": {
            "clientId": _nullable("string", description="the client; without any of these, the one that offers it"),
            "command": ref("Command"),
            "timeoutMs": _nullable("integer", exclusiveMinimum=0, description="goes before the command's"),
            "any": {
                "type": "boolean",
                "default": False,
                "description": "one of the clients that offer the target and that `match` selects: of one user's the "
                f"one that the user sees or saw last, else the least busy of {LOOKED_AT} drawn at random",
            },
            "acrossUsers": {
                "type": "boolean",
                "default": False,
                "description": "`any` may take any user's; without it, clients of several users are `ambiguous_client`",
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
                "description": f"all clients that offer the target and fit, at most {MAX_ASKED}; with `any` one of all",
            },
            "gather": {
                "oneOf": [{"enum": ["first", "all", None]}, {"type": "integer", "minimum": 1}],
                "description": "how many successes are enough: `first` is 1; `all` waits for every answer",
            },
        },
        "anyOf": [
            _way("clientId"),
            _way("match", "acrossUsers", any={"const": True}),
            _way("gather", clientIds={"type": "array"}),
            _way("gather", match={"type": "object"}),
        ],
        "example": {
            "any": True,
            "match": {"user": "ann"},
            "command": {"target": "addTodo", "parameters": {"title": "milk"}},
            "timeoutMs": 5000,
        },
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
    {
        **parameter(
            "tags",
            "only capabilities with one of these tags",
            {"type": "array", "items": {"type": "string"}, "maxItems": MAX_TAGS},
        ),
        "style": "form",
        "explode": False,
    },
    parameter("componentType", "only components of this type"),
    parameter("authLevel", f"only capabilities of this level; one that names none is `{PUBLIC}`"),
    parameter("path", "only capabilities with a path that begins with this"),
    parameter("metadata.KEY", "only clients whose metadata has this value under KEY, which stands for any key"),
    parameter(
        "limit", "at most so many clients; all without it", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}
    ),
    parameter("after", "only clients whose id sorts after this one, as in the header `Link`"),
]
_LIST_HEADERS = {
    "ETag": header("an entity tag of this content", required=True),
    "Link": header("the next page, if `limit` cut the list"),
}
_UNCHANGED = {"304": {"description": "unchanged since `If-None-Match`", "headers": _LIST_HEADERS}}
_CLIENT_ID = {"name": "client_id", "in": "path", "required": True, "schema": {"type": "string"}}
_STATUS = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}

CAPABILITIES = route(
    CLIENTS_GROUP,
    "List the capabilities of each visible client",
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
    CLIENTS_GROUP,
    "List the visible clients",
    {
        "200": success(
            "records in the order of their ids, each with all that the client offers",
            {"type": "array", "items": ref("ClientRecord")},
            _LIST_HEADERS,
        ),
        **_UNCHANGED,
        **refusals(_READING_CODES),
    },
    **_SECURED,
    parameters=_FILTERS,
)
CLIENT = route(
    CLIENTS_GROUP,
    "Get one client",
    {"200": success("its record", ref("ClientRecord")), **refusals((*_READING_CODES, Code.CLIENT_NOT_FOUND))},
    **_SECURED,
    parameters=[_CLIENT_ID],
)
DISCONNECT = {
    "status_code": 204,
    **route(
        CLIENTS_GROUP,
        "End a client's session (admin)",
        {
            "204": {"description": "ended; the client is out of the lists within a second"},
            **refusals((*_READING_CODES, Code.CLIENT_NOT_FOUND)),
        },
        **_SECURED,
        parameters=[_CLIENT_ID],
    ),
}
DISCONNECT_AGENT = route(
    AGENTS_GROUP,
    "End all connections of an agent, and refuse it for a while (admin)",
    {
        "200": success("ended", ref("AgentDisconnected")),
        **refusals((*_READING_CODES, Code.CONFLICT, Code.OVERLOADED)),
    },
    **_SECURED,
    parameters=[
        {
            "name": "sub",
            "in": "path",
            "required": True,
            "description": "the agent: the `sub` of its tokens",
            "schema": {"type": "string", "minLength": 1, "maxLength": MAX_SUB_CHARS},
        },
        parameter(
            "seconds",
            "how many seconds its tokens are refused; with 0 it may come back at once, even if it is refused now",
            {"type": "integer", "minimum": 0, "maximum": MAX_DENIAL_SECONDS, "default": DENIAL_SECONDS},
        ),
    ],
)
_UPGRADED = {
    "101": {"description": "the WebSocket is open; a bad token gets a close code"},
    **refusals((*_TOKEN_CODES, Code.INTERNAL, Code.OVERLOADED, Code.UNAVAILABLE)),
    "426": {
        **refusal(description="`invalid_request`: the request asks for no WebSocket", example=examples.NO_UPGRADE),
        "headers": {"Upgrade": header("`websocket`", required=True)},
    },
}
SOCKET = route(COMMANDS, "Open a WebSocket for many commands at once", _UPGRADED, **_SECURED)
SDK_SOCKET = route(COMMANDS, "Open a WebSocket in the form of the original project's SDK", _UPGRADED, **_SECURED)
ALIVE = route(PROCESS, "Is the process alive?", {"200": success("it does", _STATUS)})
READY = route(
    PROCESS,
    "Can the process do its work?",
    {"200": success("it can", _STATUS), "503": refusal(Code.UNAVAILABLE, description="the missing parts")},
)
METRICS = {
    "response_class": Response,  # or FastAPI would add JSON to the description
    **route(
        PROCESS,
        "The metrics of the process",
        {
            "200": {
                "description": "metrics in Prometheus' text format; proxies hide them, so ask the process itself",
                "content": {CONTENT_TYPE: {"schema": {"type": "string"}}},
            }
        },
    ),
}
REPLAYED = {"Idempotency-Replayed": header("`true` if another request with this idempotency key was executed")}
_ANSWERED = success(
    "the application's answer; if several clients were asked, their responses by client id",
    {"anyOf": [ref("CommandResult"), ref("Gathered")]},
    REPLAYED,
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
    "tags": [COMMANDS],
    "summary": "Send a command and wait for its answer",
    "operationId": "command",
    **_SECURED,
    "parameters": [_IDEMPOTENCY_KEY],
    "requestBody": {"required": True, "content": json_of(ref("CommandBody"))},
    "responses": {
        "200": {**_ANSWERED, "content": _ANSWERED["content"] | _STREAMED},
        **refusals((code for code in Code if code is not Code.INVALID_FRAME), REPLAYED),
        "415": {
            **refusal(
                description="`invalid_request`: the body is not `application/json`, or is compressed",
                example=examples.NOT_JSON,
            ),
            "headers": {"Accept-Encoding": header("`identity`, if the body is compressed")},
        },
    },
}
