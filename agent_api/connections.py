"""HTTP connections with bounds that uvicorn leaves open: how long a request may take to arrive, how large its head.

Without them a stranger could hold memory and files with connections that never finish a request.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024


class HttpConnection(HttpToolsProtocol):
    """A connection that knows since when it has been waiting for the rest of a request."""

    _arriving_since: float | None = None
    _head_bytes: int | None = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the first request."""
        super().connection_made(transport)
        self._arriving_since = self.loop.time()

    def on_message_begin(self) -> None:
        """Note that a request begins to arrive."""
        super().on_message_begin()
        self._arriving_since = self.loop.time()
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Note that the head is there."""
        self._head_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that the whole request is there."""
        self._arriving_since = None
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Take bytes, but no endless head."""
        super().data_received(data)
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too large.")

    def arriving_seconds(self) -> float:
        """Return for how long a request has been arriving; 0 where none is."""
        return 0.0 if self._arriving_since is None else self.loop.time() - self._arriving_since
