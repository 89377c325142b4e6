"""Answers to HTTP/1.0, which knows no chunks: one without a length ends with its connection (RFC 9112 section 6.3)."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class UnchunkedCycle(RequestResponseCycle):
    """Writes the pieces of an answer as they are. The server closes the connection after every answer to HTTP/1.0."""

    _has_length = True

    async def send(self, message: Any) -> None:
        """Write the head or a piece of the body, as ASGI has it."""
        if message["type"] == "http.response.start":
            self._has_length = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            if not self._has_length:
                self.chunked_encoding = False
        elif message["type"] == "http.response.body" and not self._has_length:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


def leave_unchunked(cycle: RequestResponseCycle) -> None:
    """Have the answer to a request written without chunks, and none of 1xx before it (RFC 9110 section 15.2)."""
    cycle.__class__ = UnchunkedCycle
    cycle.waiting_for_100_continue = False
