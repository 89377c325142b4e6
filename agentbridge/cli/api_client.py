"""Asks an agent API why a token is refused, because NATS does not say."""

import asyncio
import contextlib
from urllib.parse import urlsplit

import msgspec

from protocol import codec
from protocol.errors import BridgeError, ErrorBody, from_body

ANSWER_SECONDS = 2.0
MAX_ANSWER_BYTES = 64 * 1024

_problems = msgspec.json.Decoder(ErrorBody)


async def refusal_of(url: str, token: str | None) -> BridgeError | None:
    """Return the agent API's reason to refuse a token, or None if it accepts it or does not answer within 2 s."""
    parts = urlsplit(url)
    head = f"GET /api/clients?limit=1 HTTP/1.0\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {token}\r\n\r\n"
    with contextlib.suppress(OSError, TimeoutError, BridgeError):  # no answer says nothing about the token
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            try:
                writer.write(head.encode())
                answer = await reader.read(MAX_ANSWER_BYTES)
                while not answer.endswith(b"}") and (more := await reader.read(MAX_ANSWER_BYTES)):
                    answer += more
            finally:
                writer.close()
        head_of_answer, _, body = answer.partition(b"\r\n\r\n")
        if head_of_answer.split(b" ")[1:2] in ([b"401"], [b"403"]):
            return from_body(codec.decode(_problems, body))
    return None
