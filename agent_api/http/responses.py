"""Responses of the ordinary routes: JSON by our codec, entity tags, errors."""

import hashlib
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from agent_api.http.problems import JSON, HttpAnswer
from protocol import codec

NO_STORE = {"cache-control": "no-store"}


def json_response(value: Any, status: int = 200) -> Response:
    """Return a value as JSON that nobody keeps."""
    return Response(codec.encode(value), status, NO_STORE, JSON.decode())


def tagged_response(request: Request, value: Any, headers: dict[str, str]) -> Response:
    """Return a value as JSON with an entity tag (RFC 9110 section 8.8.3), or 304 if the caller has it already.

    The tag is the content's own hash: the same from every process, and different for agents who see different things.
    """
    body = codec.encode(value)
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"etag": tag, "cache-control": "private, no-cache", "vary": "Authorization, Origin", **headers}
    if _has(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    return Response(body, 200, headers, JSON.decode())


def problem_response(answer: HttpAnswer) -> Response:
    """Return an error as an ordinary route sends it."""
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, {**NO_STORE, **headers}, JSON.decode())


def _has(if_none_match: str, tag: str) -> bool:
    """Compare weakly, as RFC 9110 section 13.1.2 has it."""
    tags = [candidate.strip().removeprefix("W/") for candidate in if_none_match.split(",")]
    return tag in tags or "*" in tags
