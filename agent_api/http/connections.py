"""HTTP connections with bounds that uvicorn lacks, and with paths at which they become a WebSocket.

The bounds are the time for a request to arrive, the size of its head, and the time in which an answer is read. Without
them anybody could hold memory and file descriptors with connections that make no progress.
"""

import asyncio
from functools import partial
from typing import Any, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from agent_api.http.problems import JSON, http_answer_of
from agent_api.http.sharing import EXTENSION as SHARE_EXTENSION
from agent_api.http.unchunked import leave_unchunked
from agent_api.http.writing import EXTENSION, write_whole
from protocol.errors import Overloaded
from protocol.runtime.connections.open_files import OPEN_FILES
from protocol.runtime.connections.shared import SharedConnection
from protocol.runtime.connections.turns import Work
from protocol.runtime.connections.unread import Unread, count_unread

MAX_HEAD_BYTES = 64 * 1024
MAX_AT_ONCE_BYTES = 4 * 1024  # of one-byte chunks: a millisecond
MAX_SLICE_BYTES = 1024  # of a turn that others wait for
MAX_BODY_SLICE_BYTES = 64 * 1024  # of a body of known length, which the parser takes as one piece
MAX_HELD_BYTES = 64 * 1024
COMMAND_PATH = "/api/command"
# Of the loop: for a request that is begun, and for one whose caller has gone.
COMMAND_SECONDS, REQUEST_SECONDS, GONE_SECONDS = 0.00005, 0.0003, 0.0001
SOCKET_PATH = "/api/ws"
# The paths for agents of the original project's SDK. A proxy for applications and agents uses the second one.
SDK_SOCKET_PATHS = ("/agent-bridge", "/api/agent-bridge")
_SOCKET_PATHS = frozenset(path.encode() for path in (SOCKET_PATH, *SDK_SOCKET_PATHS))
_LENGTHS = (b"content-length", b"transfer-encoding")


class HttpConnection(SharedConnection, HttpToolsProtocol):
    """A connection that knows how long it has waited for its peer.

    `writes_whole` lets answers go past uvicorn's own way for them.
    """

    writes_whole = True
    _arriving_since: float | None = None
    _unread: Unread | None = None
    _idle_since: float | None = None
    _head_bytes: int | None = 0
    _answering: RequestResponseCycle | None = None
    _extensions: Any = None
    _body_left = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the first request."""
        super().connection_made(transport)
        OPEN_FILES.note(transport)
        self.read_little()
        self.flow = _Flow(transport, self)
        self._arriving_since = self.loop.time()
        self._extensions = {SHARE_EXTENSION: self._belong_to}
        if self.writes_whole:
            self._extensions[EXTENSION] = self._write_whole

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell all waiting requests in turns that their caller has gone. Break cycles."""
        last = self.cycle
        for cycle in dict.fromkeys((self._answering, *(waiting for waiting, _ in self.pipeline), last)):
            if cycle is not None and not cycle.response_complete:
                self._tell_gone(cycle)
        self.pipeline.clear()
        self._extensions.clear()
        self._let_go()
        if last is not None and not last.response_complete:
            self.cycle = None  # type: ignore[assignment]  # else uvicorn would wake its task at once
        super().connection_lost(exc)
        self.cycle = last
        cast("_Flow", self.flow).leave()

    def _tell_gone(self, cycle: RequestResponseCycle) -> None:
        """Wake a request's task in a turn of the loop.

        It frees up to a megabyte, and may cancel a command. 300 that ended in the same turn held the loop for 30 ms.
        """
        cycle.disconnected = True
        self.turns.add(Work(self.share, partial(self._wake, cycle)))

    def _wake(self, cycle: RequestResponseCycle) -> None:
        cycle.message_event.set()
        self.turns.charge(GONE_SECONDS)

    def handle_websocket_upgrade(self) -> None:
        """Pass the connection to the WebSocket protocol, and break the reference cycles of this one."""
        super().handle_websocket_upgrade()
        # uvicorn has put the WebSocket in this connection's place.
        cast("SharedConnection", self.transport.get_protocol()).read_little()
        self._drop_input()
        self._count_waiting()
        self._read(True)
        cast("_Flow", self.flow).leave()
        self._extensions.clear()
        self.parser = None  # type: ignore[assignment]

    def on_message_begin(self) -> None:
        """Note that a request begins to arrive."""
        super().on_message_begin()
        self._arriving_since = self.loop.time()
        self._idle_since = None
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Note that the head has arrived, and let the answer be written in one piece."""
        self._head_bytes = self._idle_since = None
        self._body_left = 0
        for name, value in self.headers:
            if name == b"content-length":
                self._body_left = int(value)
                break
        super().on_headers_complete()
        self.scope["extensions"] = self._extensions

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._body_left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the whole request has arrived. If the parser stopped at an upgrade, that is only the head."""
        if self.parser.should_upgrade() and not self._should_upgrade():
            return
        self._arriving_since = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin the next request in its turn, or wait for it. One clock for all connections bounds the wait."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if not self.pipeline:
            self._idle_since = self.loop.time()
        self.flow.resume_reading()
        self.go_on()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        if cycle.scope["http_version"] != "1.1":
            leave_unchunked(cycle)
        self.turns.charge(COMMAND_SECONDS if cycle.scope["path"] == COMMAND_PATH else REQUEST_SECONDS)
        super()._start_asgi_task(cycle, app)

    def _belong_to(self, tenant: str, sub: str) -> None:
        self.share = (tenant, sub)

    def _write_whole(self, scope: Scope, status: int, body: bytes) -> bool:
        return write_whole(self.cycle, scope, status, body)

    def _should_upgrade_to_ws(self) -> bool:
        """Tell whether an upgrade leads to a WebSocket. Any other is answered as an ordinary request."""
        free = self.cycle is None or self.cycle.response_complete  # no answer is written into the WebSocket
        return free and self.scope["method"] == "GET" and self.url.partition(b"?")[0] in _SOCKET_PATHS

    def data_received(self, data: bytes) -> None:
        """Handle the bytes at once if no other socket waits. Else pause reading, and handle them in turns."""
        is_small = not self._input and len(data) <= MAX_AT_ONCE_BYTES
        if is_small and not self._is_held and self.turns.at_once(self.share):
            self._parse(data)
            return
        self._keep(data)
        if self._in_turns:
            return
        if self._is_held:
            self._read(self._may_hold_more)
            self._count_waiting()
        else:
            self._add_to_turns()

    def take_slice(self) -> bool:
        """Begin the next request, or parse a slice of the input. Return whether more may be done now."""
        if self.pipeline:
            self._in_turns = False
            if not self.transport.is_closing():
                self._start_asgi_task(*self.pipeline.pop())
                self.go_on()
            return False
        data, start = self._input, self._at
        self._at = min(len(data), start + max(MAX_SLICE_BYTES, min(self._body_left, MAX_BODY_SLICE_BYTES)))
        if not self.transport.is_closing():
            self._parse(data[start : self._at] if self._at - start < len(data) else data)
        if self._at >= len(self._input) or self.transport.is_closing():
            self._drop_input()
        elif not self._is_held:
            return True
        self._in_turns = False
        self._read(self._may_hold_more)
        self._count_waiting()
        return False

    def hold(self) -> None:
        """Read no more until `go_on()`."""
        self._read(False)

    def go_on(self) -> None:
        """Handle the input that was held, or read on."""
        if self._in_turns:
            return
        if self._begins_next or (self._input and not self._is_held):
            self._add_to_turns()
        else:
            self._read(self._may_hold_more)

    @property
    def _begins_next(self) -> bool:
        """Whether the next request waits and the one before it has been answered."""
        return bool(self.pipeline) and (self._answering is None or self._answering.response_complete)

    @property
    def _is_held(self) -> bool:
        """Whether input has to wait: a body is not read, or a request waits for the answer to the one before."""
        return self.flow.read_paused or bool(self.pipeline)

    @property
    def _may_hold_more(self) -> bool:
        """Whether to read on although input waits, because only reading shows that the caller leaves."""
        return not self.flow.read_paused and len(self._input) - self._at < MAX_HELD_BYTES

    def _add_to_turns(self) -> None:
        super()._add_to_turns()
        self._count_waiting()

    def _count_waiting(self) -> None:
        self._count_input(len(self._input) - self._at)

    def give_up_message(self, error: Overloaded) -> None:
        """Refuse the unfinished request, and close.

        A whole request before it may have been executed already. It gets no answer, because a refusal might be wrong.
        """
        self._let_go_input()
        self._drop_input()
        if self.transport.is_closing():
            return
        if self.cycle is None or (self.cycle.more_body and not self.cycle.response_started and not self.pipeline):
            self.transport.write(_refusal(error))
        self.transport.close()

    def _parse(self, data: bytes) -> None:
        """Parse bytes. Refuse a head that is too large, and ignore every upgrade except to a WebSocket at its path."""
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
        """Go on with a request as if it had not asked for an upgrade (RFC 9110 section 7.8).

        The parser treats all bytes after such a head as another protocol. If it simply went on, it could read this
        request's body, which the caller controls, as the next request. So a fresh parser starts with the body's length.
        """
        lengths = [header for header in self.headers if header[0] in _LENGTHS]
        remaining = Remaining(self)
        self.parser = httptools.HttpRequestParser(remaining)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % each for each in lengths))
        remaining.go_on()
        if rest:
            self._parse(rest)

    def pause_writing(self) -> None:
        """Note that the peer does not read."""
        super().pause_writing()
        self._unread = Unread(count_unread(self.transport), self.loop.time())
        self._congest(True)

    def resume_writing(self) -> None:
        """Note that the peer reads again."""
        super().resume_writing()
        self._unread = None
        self._congest(False)

    def cut_off(self) -> None:
        """Abort the connection. The unread answer is lost."""
        self.transport.abort()

    @property
    def arriving(self) -> bool:
        """Whether a request has arrived in part."""
        return self._arriving_since is not None and self._head_bytes != 0

    def close_where_arriving(self, for_seconds: float) -> None:
        """Close if a request has been arriving for longer. Its handler learns that the caller has gone."""
        if self._arriving_since is not None and self.loop.time() - self._arriving_since > for_seconds:
            self.transport.close()

    def close_where_idle(self, for_seconds: float) -> None:
        """Close if no request has followed the last answer for longer."""
        if self._idle_since is not None and self.loop.time() - self._idle_since > for_seconds:
            self.transport.close()

    def abort_where_unread(self, for_seconds: float) -> None:
        """Abort if the peer has read too little of an answer for longer. A close would wait for the unwritten bytes."""
        if self._unread is None:
            return
        if self._unread.is_stalled(count_unread(self.transport), self.loop.time(), for_seconds):
            self.transport.abort()


def _refusal(error: Overloaded) -> bytes:
    """Return a complete response, for a request that no endpoint answers."""
    answer = http_answer_of(error)
    headers = ((b"content-type", JSON), (b"content-length", b"%d" % len(answer.body)), *answer.headers)
    lines = (b"%b: %b\r\n" % header for header in (*headers, (b"connection", b"close")))
    return b"".join((STATUS_LINE[answer.status], *lines, b"\r\n", answer.body))


class _Flow(FlowControl):
    """Flow control of a connection: uvicorn's interface, on top of turns and waiting input."""

    def __init__(self, transport: asyncio.Transport, connection: HttpConnection) -> None:
        super().__init__(transport)
        self._connection: HttpConnection | None = connection

    def leave(self) -> None:
        """Break the reference cycle of an ended connection."""
        self._connection = None

    def pause_reading(self) -> None:
        """Stop reading from the socket."""
        self.read_paused = True
        if self._connection is not None:
            self._connection.hold()

    def resume_reading(self) -> None:
        """Go on after a body or a whole request has been read."""
        if self.read_paused:
            self.read_paused = False
            if self._connection is not None:
                self._connection.go_on()


class Remaining:
    """Parser callbacks that skip the first head, because the connection has it already."""

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
