"""HTTP connections with the bounds that uvicorn leaves open, and with one path at which they become a WebSocket.

How long a request may take to arrive, how large its head may be, how long an answer may wait to be read: without these
a stranger could hold memory and files with connections that never get on.
"""

import asyncio
import contextlib
import fcntl
import sys
import termios
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from agent_api.http.writing import EXTENSION, write_whole

MAX_HEAD_BYTES = 64 * 1024
SOCKET_PATH = "/api/ws"
MIN_READ_BYTES = 16 * 1024  # of what waits to be read, in the time in which some of it must be


class HttpConnection(HttpToolsProtocol):
    """A connection that knows since when it has been waiting for its peer."""

    _arriving_since: float | None = None
    _unread_since: float | None = None
    _unread_bytes = 0
    _idle_since: float | None = None
    _head_bytes: int | None = 0
    _extensions: Any = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the first request."""
        super().connection_made(transport)
        self._arriving_since = self.loop.time()
        self._extensions = {EXTENSION: self._write_whole}

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the library clean up, and break the circle of this connection and what it offers."""
        super().connection_lost(exc)
        self._extensions = None

    def on_message_begin(self) -> None:
        """Note that a request begins to arrive."""
        super().on_message_begin()
        self._arriving_since = self.loop.time()
        self._idle_since = None
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Note that the head is there, and offer to write the answer as one."""
        self._head_bytes = None
        super().on_headers_complete()
        self.scope["extensions"] = self._extensions

    def on_message_complete(self) -> None:
        """Note that the whole request is there."""
        self._arriving_since = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for it: not by a timer for each answer, but by the clock of them all."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_since = self.loop.time()

    def _write_whole(self, scope: Scope, status: int, body: bytes) -> bool:
        return write_whole(self.cycle, scope, status, body)

    def _should_upgrade_to_ws(self) -> bool:
        """Tell whether an upgrade leads to a WebSocket; any other is an ordinary request, answered as one."""
        free = self.cycle is None or self.cycle.response_complete  # no answer is written into the WebSocket
        return free and self.scope["method"] == "GET" and self.url.partition(b"?")[0] == SOCKET_PATH.encode()

    def data_received(self, data: bytes) -> None:
        """Take bytes, but no endless head."""
        super().data_received(data)
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too large.")

    def pause_writing(self) -> None:
        """Note that the peer does not read."""
        super().pause_writing()
        self._unread_since, self._unread_bytes = self.loop.time(), self._count_unread()

    def resume_writing(self) -> None:
        """Note that the peer reads again."""
        super().resume_writing()
        self._unread_since = None

    def close_where_arriving(self, for_seconds: float) -> None:
        """Close where a request has been arriving for longer; its handler sees the caller gone."""
        if self._arriving_since is not None and self.loop.time() - self._arriving_since > for_seconds:
            self.transport.close()

    def close_where_idle(self, for_seconds: float) -> None:
        """Close where no request has followed the last answer for longer."""
        if self._idle_since is not None and self.loop.time() - self._idle_since > for_seconds:
            self.transport.close()

    def abort_where_unread(self, for_seconds: float) -> None:
        """Abort where next to nothing of an answer was read for longer; only that ends it with unwritten bytes."""
        if self._unread_since is None:
            return
        now, unread = self.loop.time(), self._count_unread()
        if unread <= self._unread_bytes - MIN_READ_BYTES:
            self._unread_since, self._unread_bytes = now, unread
        elif now - self._unread_since > for_seconds:
            self.transport.abort()

    def _count_unread(self) -> int:
        """Return how many bytes the peer has not acknowledged: ours, and the system's, which takes up megabytes."""
        held = bytes(4)
        with contextlib.suppress(OSError):  # not every kind of system tells
            held = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, held)
        return self.transport.get_write_buffer_size() + int.from_bytes(held, sys.byteorder)
