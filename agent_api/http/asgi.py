"""HTTP at its barest: heads and bodies read from ASGI, answers written to it."""

import asyncio
import contextlib
from collections.abc import Iterable

import msgspec
from starlette.types import Message, Receive, Send

from agent_api.http.problems import JSON, Answer, HttpFault
from agent_api.http.waiting import CallerGone
from protocol.errors import PayloadTooLarge

LINGER_SECONDS = 1
LINGER_BYTES = 8 * 1024 * 1024
_CONTENT_TYPE = (b"content-type", JSON)
_NO_STORE = (b"cache-control", b"no-store")
_CLOSE = (b"connection", b"close")


class Head(msgspec.Struct):
    """What a command's headers say. `length` is None for a body of unknown length."""

    authorization: str | None = None
    content_type: bytes = b""
    accept: bytes = b""
    length: int | None = None
    idempotency_key: str | None = None


def read_head(headers: Iterable[tuple[bytes, bytes]]) -> Head:
    """Pick what matters out of a request's headers; the server has checked that a length is a number."""
    head = Head()
    for name, value in headers:
        if name == b"authorization":
            head.authorization = value.decode("latin-1")
        elif name == b"content-type":
            head.content_type = value
        elif name == b"content-length":
            head.length = int(value)
        elif name == b"accept":
            head.accept = b"%b,%b" % (head.accept, value) if head.accept else value
        elif name == b"idempotency-key":
            given = value.decode("latin-1")  # two of them make a list (RFC 9110 section 5.3), which is no key
            head.idempotency_key = given if head.idempotency_key is None else f"{head.idempotency_key}, {given}"
    return head


def require_json(head: Head) -> None:
    """Raise `HttpFault` (415) for a body that does not claim to be JSON: browsers send others without asking."""
    if head.content_type.partition(b";")[0].strip().lower() != JSON:
        raise HttpFault(415, "the header Content-Type must be application/json")


async def read_body(receive: Receive, limit_bytes: int) -> bytes:
    """Read a whole body.

    Raises `PayloadTooLarge` as soon as it exceeds the limit, `CallerGone` where the connection closes before its end.
    """
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False) and message["type"] == "http.request" and len(body) <= limit_bytes:
        return body
    return await _collect(receive, message, limit_bytes)


async def write_answer(send: Send, receive: Receive, answer: Answer) -> None:
    """Send a response; where it closes the connection, let the caller finish speaking first, within bounds.

    A connection closed upon unread data is reset, and the caller may never see why.
    """
    headers = [_CONTENT_TYPE, (b"content-length", b"%d" % len(answer.body)), _NO_STORE, *answer.headers]
    if answer.close:
        headers.append(_CLOSE)
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": answer.close})
    if answer.close:
        await _linger(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _collect(receive: Receive, message: Message, limit_bytes: int) -> bytes:
    """Read a body that comes in pieces, of which `message` is the first."""
    body = bytearray()
    while message["type"] == "http.request":
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            raise PayloadTooLarge(f"the body exceeds the {limit_bytes} bytes that are accepted")
        if not message.get("more_body", False):
            return bytes(body)
        message = await receive()
    raise CallerGone


async def _linger(receive: Receive) -> None:
    """Read on and forget, for at most a second and some megabytes."""
    size, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while more and size < LINGER_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
