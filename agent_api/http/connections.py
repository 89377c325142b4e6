"""HTTP connections with the bounds that uvicorn leaves open, and with one path at which they become a WebSocket.

How long a request may take to arrive, how large its head may be, how long an answer may wait to be read: without these
a stranger could hold memory and files with connections that never get on.
"""

import asyncio
from typing import Any

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from agent_api.http.unread import Unread, count_unread
from agent_api.http.writing import EXTENSION, write_whole

MAX_HEAD_BYTES = 64 * 1024
SOCKET_PATH = "/api/ws"
_LENGTHS = (b"content-length", b"transfer-encoding")


class HttpConnection(HttpToolsProtocol):
    """A connection that knows since when it has been waiting for its peer."""

    _arriving_since: float | None = None
    _unread: Unread | None = None
    _idle_since: float | None = None
    _head_bytes: int | None = 0
    _answering: RequestResponseCycle | None = None
    _extensions: Any = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the first request."""
        super().connection_made(transport)
        self._arriving_since = self.loop.time()
        self._extensions = {EXTENSION: self._write_whole}

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request that its caller has gone, where the library tells the last alone; and break circles."""
        for cycle in (self._answering, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        self._extensions.clear()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, and break the circles of what was its protocol."""
        super().handle_websocket_upgrade()
        self._extensions.clear()
        self.parser = None  # type: ignore[assignment]

    def on_message_begin(self) -> None:
        """Note that a request begins to arrive."""
        super().on_message_begin()
        self._arriving_since = self.loop.time()
        self._idle_since = None
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Note that the head is there, and offer to write the answer as one."""
        self._head_bytes = self._idle_since = None
        super().on_headers_complete()
        self.scope["extensions"] = self._extensions

    def on_message_complete(self) -> None:
        """Note that the whole request is there; where the parser stopped at an upgrade, that is its head alone."""
        if self.parser.should_upgrade() and not self._should_upgrade():
            return
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

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _write_whole(self, scope: Scope, status: int, body: bytes) -> bool:
        return write_whole(self.cycle, scope, status, body)

    def _should_upgrade_to_ws(self) -> bool:
        """Tell whether an upgrade leads to a WebSocket; any other is an ordinary request, answered as one."""
        free = self.cycle is None or self.cycle.response_complete  # no answer is written into the WebSocket
        return free and self.scope["method"] == "GET" and self.url.partition(b"?")[0] == SOCKET_PATH.encode()

    def data_received(self, data: bytes) -> None:
        """Take bytes, but no endless head, and no upgrade but to a WebSocket at its path."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade as stop:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._read_on(data[stop.args[0] :])
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too large.")

    def _read_on(self, rest: bytes) -> None:
        """Read a request on as if it had not asked for an upgrade (RFC 9110 section 7.8).

        The parser takes what follows such a head for another protocol. What it would then take for the next request may
        be this one's body, which strangers write; so a fresh parser begins with how long this body is.
        """
        lengths = [header for header in self.headers if header[0] in _LENGTHS]
        remaining = Remaining(self)
        self.parser = httptools.HttpRequestParser(remaining)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % each for each in lengths))
        remaining.go_on()
        if rest:
            self.data_received(rest)

    def pause_writing(self) -> None:
        """Note that the peer does not read."""
        super().pause_writing()
        self._unread = Unread(count_unread(self.transport), self.loop.time())

    def resume_writing(self) -> None:
        """Note that the peer reads again."""
        super().resume_writing()
        self._unread = None

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
        if self._unread is None:
            return
        if self._unread.is_stalled(count_unread(self.transport), self.loop.time(), for_seconds):
            self.transport.abort()


class Remaining:
    """Takes what a parser finds for a connection which knows the first head already."""

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self._knows = True
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete

    def go_on(self) -> None:
        """Pass on all heads from now on."""
        self._knows = False

    def on_message_begin(self) -> None:
        """Begin the next request."""
        if not self._knows:
            self._connection.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take some of the next request's target."""
        if not self._knows:
            self._connection.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header of the next request."""
        if not self._knows:
            self._connection.on_header(name, value)

    def on_headers_complete(self) -> None:
        """End the head of the next request."""
        if not self._knows:
            self._connection.on_headers_complete()
