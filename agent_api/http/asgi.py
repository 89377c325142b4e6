"""Minimal HTTP on ASGI: reads heads, and writes answers."""

import asyncio
import contextlib
from collections.abc import Iterable

import msgspec
from starlette.types import Receive, Send

from agent_api.http.problems import JSON, HttpAnswer, HttpFault
from agent_api.http.sharing import BelongTo

LINGER_SECONDS = 1
LINGER_BYTES = 8 * 1024 * 1024
_CONTENT_TYPE = (b"content-type", JSON)
_NO_STORE = (b"cache-control", b"no-store")
_CLOSE = (b"connection", b"close")
ACCEPT_ENCODING, IDENTITY = b"accept-encoding", b"identity"
_NAMES = frozenset(
    {b"authorization", b"content-type", b"content-length", b"accept", b"content-encoding", b"idempotency-key"}
)


class Head(msgspec.Struct):
    """The headers of a command's request. `length` is None for a body of unknown length.

    `belong_to` assigns the connection to a tenant's `sub`. From then on it takes the turns of this `sub`.
    """

    authorization: tuple[str, ...] = ()
    content_type: bytes = b""
    content_encoding: bytes = b""
    accept: bytes = b""
    length: int | None = None
    idempotency_key: str | None = None
    belong_to: BelongTo | None = None


def read_head(headers: Iterable[tuple[bytes, bytes]]) -> Head:
    """Read the headers that we need. The server has checked that a length is a number."""
    head = Head()
    for name, value in headers:
        if name not in _NAMES:
            continue
        if name == b"authorization":
            head.authorization += (value.decode("latin-1"),)
        elif name == b"content-type":
            head.content_type = value
        elif name == b"content-length":
            head.length = int(value)
        elif name == b"accept":
            head.accept = b"%b,%b" % (head.accept, value) if head.accept else value
        elif name == b"content-encoding":
            head.content_encoding = value
        elif name == b"idempotency-key":
            given = value.decode("latin-1")  # two headers count as a list (RFC 9110 section 5.3), which is not a key
            head.idempotency_key = given if head.idempotency_key is None else f"{head.idempotency_key}, {given}"
    return head


def require_json(head: Head) -> None:
    """Raise `HttpFault` (415) for a body of another type than JSON, because browsers send those without preflight.

    A compressed body is refused, too, because its size is only known after it is unpacked in memory.
    """
    if head.content_type.partition(b";")[0].strip().lower() != JSON:
        raise HttpFault(415, "the header Content-Type must be application/json")
    if head.content_encoding and head.content_encoding.strip().lower() != IDENTITY:
        raise HttpFault(415, "send the body as it is: no Content-Encoding is accepted", (ACCEPT_ENCODING, IDENTITY))


async def write_answer(send: Send, receive: Receive, answer: HttpAnswer) -> None:
    """Send a response. If it closes the connection, read the rest of the request first, within bounds.

    A connection that is closed with unread data is reset, and the caller may never see the response.
    """
    headers = [_CONTENT_TYPE, (b"content-length", b"%d" % len(answer.body)), _NO_STORE, *answer.headers]
    if answer.close:
        headers.append(_CLOSE)
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": answer.close})
    if answer.close:
        await _linger(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _linger(receive: Receive) -> None:
    """Read and discard the rest of the request, for at most a second and some megabytes."""
    size, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while more and size < LINGER_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
