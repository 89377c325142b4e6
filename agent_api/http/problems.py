"""Errors over HTTP: the status of the table, one body for every route, and the headers that go with it."""

import math
from http import HTTPStatus
from typing import Any

import msgspec

from protocol import codec
from protocol.errors import BridgeError, Code, InvalidRequest, RateLimited

Header = tuple[bytes, bytes]

RETRY_AFTER_SECONDS = 1
JSON = b"application/json"
RETRY_AFTER = (b"retry-after", str(RETRY_AFTER_SECONDS).encode())
HEADERS: dict[Code, Header] = {
    Code.UNAUTHENTICATED: (b"www-authenticate", b"Bearer"),
    Code.RATE_LIMITED: RETRY_AFTER,
    Code.OVERLOADED: RETRY_AFTER,
    Code.UNAVAILABLE: RETRY_AFTER,
}


class Problem(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The body of every refusal. `protocol.errors.RETRYABLE` explains `retryable`."""

    error: str
    code: str
    message: str
    retryable: bool
    request_id: str | None = None
    details: Any = None


class HttpAnswer(msgspec.Struct, frozen=True):
    """A complete HTTP response with a JSON body. `close` ends the connection after it."""

    status: int
    body: bytes
    headers: tuple[Header, ...] = ()
    close: bool = False


class HttpFault(InvalidRequest):
    """A fault of the HTTP request itself, which has a status of its own: 404, 405, 415."""

    def __init__(self, status: int, message: str, header: Header | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.header = header


def http_answer_of(error: BridgeError, request_id: str | None = None, *, close: bool = False) -> HttpAnswer:
    """Return the response for an error."""
    meaning = error.meaning
    status, phrase = meaning.http_status, meaning.phrase
    header = _retry_after(error) if isinstance(error, RateLimited) else HEADERS.get(error.code)
    if isinstance(error, HttpFault):
        status, phrase, header = error.status, HTTPStatus(error.status).phrase.capitalize(), error.header
    problem = Problem(phrase, error.code.value, error.message, meaning.retryable, request_id, error.details)
    return HttpAnswer(status, codec.encode(problem), (header,) if header else (), close)


def _retry_after(error: RateLimited) -> Header:
    """Return `Retry-After` in whole seconds, rounded up, at least 1."""
    return (RETRY_AFTER[0], str(max(RETRY_AFTER_SECONDS, math.ceil(error.retry_after_ms / 1000))).encode())
