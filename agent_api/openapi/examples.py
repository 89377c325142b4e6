"""An example of every error, made by the code that raises it."""

import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from agent_api.clients.find import several_offer
from agent_api.http.problems import HttpFault, http_answer_of
from protocol.errors import (
    CAPABILITY_LIMIT,
    BridgeError,
    Cancelled,
    ClientLost,
    ClientNotFound,
    Code,
    CommandFailed,
    Conflict,
    DeadlineExceeded,
    Internal,
    InvalidParameters,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    PermissionDenied,
    RateLimited,
    Unauthenticated,
    Unavailable,
    UnknownCapability,
)

NOT_JSON, NO_UPGRADE = "unsupported_media_type", "upgrade_required"
_REQUEST_ID = "7d41c0b2"
_ERRORS: tuple[BridgeError, ...] = (
    InvalidRequest("`timeoutMs`: must be greater than 0"),
    Unauthenticated("the token has expired; get a fresh one"),
    PermissionDenied("this token lacks a permission that the capability requires"),
    ClientNotFound(),
    UnknownCapability("the client offers no 'addTodo'"),
    Conflict("a command with this requestId is already in flight; use another id"),
    several_offer(["2f9c4f0e1c", "b1d3a7725e"], 2, ["ann", "bob"], "addTodo", None),
    PayloadTooLarge("the body has 2000000 bytes, but at most 983040 are accepted"),
    InvalidParameters('`parameters/title`: 5 is not of type "string"', details={"path": "/title"}),
    RateLimited.for_seconds(
        0.2, "'addTodo' takes 5 commands a second and 5 at once, of all agents together", CAPABILITY_LIMIT
    ),
    Overloaded("the client has 64 commands in flight; try again in a moment"),
    Cancelled("the caller cancelled the command"),
    CommandFailed("the list is full", details={"code": "list_full"}),
    Internal("the request failed; the log of the process says why"),
    ClientLost("the client disconnected while the command was under way; it may have run"),
    Unavailable("NATS is away; try again in a moment"),
    DeadlineExceeded("the application did not answer in time; the command may still run"),
)
_ABOUT_A_COMMAND = {
    Code.CONFLICT,
    Code.AMBIGUOUS_CLIENT,
    Code.UNKNOWN_CAPABILITY,
    Code.INVALID_PARAMETERS,
    Code.RATE_LIMITED,
    Code.CANCELLED,
    Code.COMMAND_FAILED,
    Code.CLIENT_LOST,
    Code.TIMEOUT,
}
_FAULTS = {
    NOT_JSON: HttpFault(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the header Content-Type must be application/json"),
    NO_UPGRADE: HttpFault(HTTPStatus.UPGRADE_REQUIRED, "open a WebSocket at this path"),
}


def components() -> dict[str, Any]:
    """Return the examples by name, mostly the code of the error."""
    named: dict[str, BridgeError] = {error.code.value: error for error in _ERRORS}
    return {name: _example(error) for name, error in (named | _FAULTS).items()}


def references(names: Iterable[str]) -> dict[str, Any]:
    """Return OpenAPI references to the examples of a response."""
    return {name: {"$ref": f"#/components/examples/{name}"} for name in names}


def _example(error: BridgeError) -> dict[str, Any]:
    body = http_answer_of(error, _REQUEST_ID if error.code in _ABOUT_A_COMMAND else None).body
    value = json.loads(body)
    return {"summary": value["error"], "value": value}
