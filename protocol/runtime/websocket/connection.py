"""One WebSocket of a peer: messages go to the session as they arrive, writes never wait, buffers are bounded.

The library's message queue and keepalive task are not used. They cost memory for each connection and a wake-up for each
frame, and the keepalive never evicts a peer that has stopped reading. Messages go from the socket's callback directly
to the session core.

Half of the send buffer is for messages that can be refused or left out (`has_room()`). The other half is for answers
and control frames, which are always written. A peer is cut off if it reads less than 1 KiB a second, or if both halves
are full.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from websockets.asyncio.messages import Assembler
from websockets.asyncio.server import Server, ServerConnection
from websockets.datastructures import Headers
from websockets.exceptions import InvalidMessage
from websockets.frames import Frame, Opcode
from websockets.protocol import CLOSED, CLOSING, CONNECTING, OPEN, Event
from websockets.server import ServerProtocol

from protocol.errors import CloseCode, Overloaded
from protocol.runtime.connections.bounds import ConnectionBounds
from protocol.runtime.connections.open_files import OPEN_FILES
from protocol.runtime.connections.shared import SharedConnection
from protocol.runtime.connections.turns import Turns
from protocol.runtime.connections.unread import MIN_READ_BYTES, Unread, count_unread
from protocol.runtime.websocket.framing import (
    CLOSE_OPCODE,
    MAX_SLICE_BYTES,
    MAX_SLICE_FRAMES,
    Boundaries,
    FrameCutter,
    text_frame,
    whole_text,
)
from protocol.shares import Piece

OPEN_TIMEOUT_SECONDS = 10
CLOSE_TIMEOUT_SECONDS = 2
SLOW_SECONDS = 30
MAX_BUFFERS = 2
UNCOUNTED_BYTES = 16 * 1024  # waiting input up to this size is free; more counts as a share, 256 KiB at most
MAX_IDLE_FRAMES_PER_SECOND = 200  # control frames, and data frames without data
# While a connection closes, only the peer's closing frame matters: every 0.1 s one read, or 128 frames.
TRICKLE_SECONDS = 0.1
TRICKLE_FRAMES = 128
REFUSED_BODY_SECONDS = 0.01  # between reads of a refused request's body; the sender may read our answer only after it

log = logging.getLogger(__name__)
_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_END_OF_HEAD = b"\r\n\r\n"
_NO_HEADERS = Headers()
_READABLE = b"GET ", b"HEAD "
_METHOD_BYTES = 5


class Receiver(Protocol):
    """Takes the messages of a peer."""

    def __call__(self, data: bytes, *, text: bool) -> None:
        """Take one complete message, without yielding to the event loop."""


class SocketBounds(NamedTuple):
    """The bounds of one server's connections: sizes in bytes, turns for input, shares of memory.

    Unless `reads_fast`, the library parses all frames; unless `writes_fast`, it makes all frames.
    """

    max_message_bytes: int
    send_buffer_bytes: int
    turns: Turns
    shares: ConnectionBounds
    reads_fast: bool
    writes_fast: bool


class BoundedSocket(SharedConnection, ServerConnection):
    """A connection that passes messages to a receiver. Messages wait until there is one."""

    connections: "set[BoundedSocket]"
    no_messages: Assembler | None = None
    reads_fast = writes_fast = True
    send_buffer_bytes = 1024 * 1024
    too_slow = False
    _on_hold = _passes_over = _parser_is_lost = False
    _place: Piece | None = None
    _head_tail = _method = b""
    _is_refused = False
    _cutter: FrameCutter | None = None
    _idle_frames = 0
    _idle_since = 0.0
    _receiver: Receiver | None = None
    _fragments: bytearray | None = None
    _is_text = False
    _unread: Unread | None = None
    _lone_bytes = 0
    _gone: asyncio.Future[None] | None = None

    def __init__(self, protocol: ServerProtocol, server: Server, **options: Any) -> None:
        super().__init__(protocol, server, **options)
        self._boundaries: Boundaries | None = None
        if self.reads_fast:
            self._boundaries = protocol.reader = Boundaries(protocol.reader)

    async def wait_closing(self) -> None:
        """Return as soon as either side has begun to close the connection, or it is lost."""
        if self.protocol.state is OPEN:
            await self.closing()

    def closing(self) -> "asyncio.Future[None]":
        """Return a future that is done when either side has begun to close the connection, or it is lost."""
        if self._gone is None or self._gone.cancelled():
            self._gone = self.loop.create_future()
        self._note_closing()
        return self._gone

    def admit(self, tenant: str, sub: str) -> None:
        """Count the connection for a user from now on, and give its input the user's turns.

        Raises `Overloaded` if the user or the tenant has too many connections.
        """
        self._place = self.bounds.admit(self, (tenant, sub))
        self.share = (tenant, sub)

    def receive_by(self, receiver: Receiver) -> None:
        """Pass all messages to a session from now on, and those that have waited for it."""
        self._forget_heads()
        self.introduce_by(receiver)

    def introduce_by(self, receiver: Receiver) -> None:
        """Pass all messages to `receiver`, as `receive_by()` does, but keep the headers of the opening handshake."""
        self._receiver = receiver
        self.go_on()

    def _forget_heads(self) -> None:
        """Drop the headers of the opening handshake, which take 1.5 KB per connection and are not needed any more."""
        self.protocol.subprotocol = None  # it may contain the token
        self.response = None
        if self.request is not None:
            self.request.headers = _NO_HEADERS

    def send_text(self, data: bytes) -> None:
        """Write a text frame without waiting. Cut the peer off if too much is unread already."""
        if self.protocol.state is OPEN:
            frame = text_frame(data) if self.writes_fast else self._frame_of_library(data)
            if self._unread is not None:
                self._unread.grew(len(frame))
            self.transport.write(frame)
            if self.transport.get_write_buffer_size():
                self._bound_unread(len(frame))

    def _frame_of_library(self, data: bytes) -> bytes:
        """Return a text frame that the library has made, behind whatever else it had to write."""
        self.protocol.send_text(data)
        return b"".join(self.protocol.data_to_send())

    def has_room(self, size: int) -> bool:
        """Tell whether `size` more bytes fit into the send buffer. A message of any size fits into an empty one."""
        unread = self.unread_bytes
        return not unread or unread + size <= self.send_buffer_bytes

    def require_room(self, size: int) -> None:
        """Raise `Overloaded` if `size` more bytes do not fit, or if the peer's user or tenant has used up its share."""
        if not self.has_room(size):
            raise Overloaded("the client has not read the commands before this one; try again in a moment")
        self.bounds.require_output_share(self.share)

    def count_queued(self, size: int) -> None:
        """Count `size` bytes of queued commands as unread output."""
        if size != self._queued_bytes:
            self._queued_bytes = size
            self._count_unsent()

    def check_reading(self, for_seconds: float = SLOW_SECONDS) -> bool:
        """Abort the connection if the peer reads too slowly. Return whether it has read since the last call.

        Call this about once a second. If less than 30 KiB are unread, the keepalive decides about the peer.
        """
        if self._unread is None or self.transport.is_closing():
            return False
        unread = count_unread(self.transport)
        taken = self._unread.has_shrunk(unread)
        self._count_unsent()
        if unread < MIN_READ_BYTES:
            self._unread = None
        elif self._unread.is_stalled(unread, self.loop.time(), for_seconds):
            self.cut_off()
        return taken

    def send_ping(self, on_pong: Callable[[], None]) -> None:
        """Write a ping. `on_pong` is called when the peer has read everything before it and answers."""
        if self.protocol.state is not OPEN:
            return
        self._watch_reading()
        payload = secrets.token_bytes(4)
        waiter: asyncio.Future[float] = self.loop.create_future()
        waiter.add_done_callback(lambda done: None if done.cancelled() or done.exception() else on_pong())
        self.pending_pings[payload] = (waiter, self.loop.time())
        self.protocol.send_ping(payload)
        self._write()

    def close_soon(self, code: int, reason: str) -> None:
        """Start the closing handshake. The end of the handler waits for it, for `close_timeout` at most."""
        if self.protocol.state is OPEN:
            self.protocol.send_close(code, reason)
            self._write()
            self._note_closing()
            self.go_on()

    @property
    def close_codes(self) -> tuple[int | None, int | None]:
        """The codes of the closing handshake so far: the peer's, and ours."""
        received, sent = self.protocol.close_rcvd, self.protocol.close_sent
        return (None if received is None else received.code, None if sent is None else sent.code)

    # --- callbacks of the library ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Add the connection to its server's."""
        super().connection_made(transport)
        self.read_little()
        if self.no_messages is not None:
            self.recv_messages = self.no_messages
        OPEN_FILES.note(transport)
        self.connections.add(self)
        self.bounds.take_in(self)

    def process_event(self, event: Event) -> None:
        """Assemble messages from data frames (RFC 6455 section 5.4); leave the rest to the library."""
        if not isinstance(event, Frame) or self.request is None:
            super().process_event(event)
            return
        if event.opcode not in _DATA:
            self._count_idle_frame()
            super().process_event(event)
            return
        if not event.data:
            self._count_idle_frame()
        if event.opcode is not Opcode.CONT:
            self._is_text = event.opcode is Opcode.TEXT
        if event.fin and self._fragments is None:
            self._deliver(bytes(event.data))
            return
        self._fragments = self._fragments if self._fragments is not None else bytearray()
        self._fragments += event.data
        if event.fin:
            whole, self._fragments = bytes(self._fragments), None
            self._deliver(whole)

    def data_received(self, data: bytes) -> None:
        """Handle the bytes at once if no other socket waits. Else pause reading, and handle them in turns."""
        handled = 0
        if not self._input and self.turns.at_once(self.share):
            handled = self._hand_over(data, 0)
            if handled == len(data):
                return
        self._keep(data[handled:])
        if self._in_turns:
            return
        if self._is_held:
            self._read(False)
            self._count_unfinished()
        elif not self.turns.at_once(self.share):
            self._add_to_turns()
        else:
            self._in_turns = True  # so that a message that ends the connection does not add it to the turns
            if self.take_slice():
                self._add_to_turns()

    def _add_to_turns(self) -> None:
        super()._add_to_turns()
        if len(self._input) - self._at > UNCOUNTED_BYTES:
            self._count_unfinished()

    def take_slice(self) -> bool:
        """Handle 16 frames or 64 KiB of the input. Return whether more may be handled now.

        After this side has begun to close, all frames up to the peer's closing frame are skipped, slowly, so that a
        refused peer costs others nothing. The body of a refused HTTP request is skipped faster, because an HTTP client
        may write all of it before it reads the answer.
        """
        if self._is_held:
            self._in_turns = False
            return False
        is_over = self.protocol.state is CLOSED or not self._input  # lost or given up while it waited for a turn
        is_over = is_over or self._is_refused  # the input is the body of a refused request
        if is_over:
            self._at = len(self._input)
        elif self.protocol.state is CLOSING:
            self._pass_over()
        elif (handled := self._hand_over(self._input, self._at)) > self._at:
            self._at = handled
        else:
            self._parse_slice()
        if self._at < len(self._input) and not self._is_ending:
            return True
        self._in_turns = False
        if self._at >= len(self._input):
            self._drop_input()
        self._count_unfinished()
        if self._is_ending:
            self._trickle()
        else:
            self._read(not self._is_held)
        return False

    @property
    def _is_ending(self) -> bool:
        """Whether this side has refused the handshake, or has begun to close."""
        return self.protocol.state in (CLOSING, CLOSED) or self.protocol.eof_sent

    def _trickle(self) -> None:
        """Pause reading for a moment: 0.1 s, or 10 ms for the body of a refused request."""
        self._read(False)
        if not self.transport.is_closing():
            self.loop.call_later(REFUSED_BODY_SECONDS if self._is_refused else TRICKLE_SECONDS, self.go_on)

    @property
    def _is_held(self) -> bool:
        """Whether messages have to wait, because the session has not begun yet or has called `hold()`."""
        if self.protocol.state not in (CONNECTING, OPEN) or self.protocol.eof_sent:
            return False
        return self._on_hold or (self._receiver is None and self.request is not None)

    def hold(self) -> None:
        """Pass no more messages on, and pause reading."""
        self._on_hold = True
        self._read(False)

    def go_on(self) -> None:
        """Handle the input that has waited, and resume reading."""
        self._on_hold = False
        if self._in_turns:
            return
        if self._input:
            self._add_to_turns()
        else:
            self._read(not self._is_held)

    @property
    def _frames(self) -> FrameCutter:
        """The position in the stream. It is made at first use, because most connections only send whole messages."""
        if self._cutter is None:
            self._cutter = FrameCutter()
        return self._cutter

    def _hand_over(self, data: bytes, at: int) -> int:
        """Deliver messages from `at` on that are one text frame each: 16, or 64 KiB. Return the end of the last one.

        It stops at anything that the library has to parse, and as soon as the session holds or closes the connection.
        """
        if self._boundaries is None or not self._boundaries.between_frames or self._fragments is not None:
            return at
        most = at + MAX_SLICE_BYTES
        for _ in range(MAX_SLICE_FRAMES):
            if self._receiver is None or self._on_hold or self.protocol.state is not OPEN:
                break
            found, limit = whole_text(data, at), self.protocol.max_message_size
            if found is None or (limit is not None and len(found[0]) > limit):
                break
            message, at = found
            self._is_text = True
            self._deliver(message)
            if at == len(data) or at >= most:
                break
        return at

    def _parse_slice(self) -> None:
        """Let the library parse a slice."""
        data, start = self._input, self._at
        self._at = self._frames.slice_end(data, start) if self.request is not None else self._end_of_head(data, start)
        super().data_received(data[start : self._at] if start or self._at < len(data) else data)
        self._bound_unread()
        self._note_closing()

    def _end_of_head(self, data: bytes, start: int) -> int:
        """Return the end of the opening handshake's head, because frames may follow it in the same chunk."""
        self._method = (self._method + data[start : start + _METHOD_BYTES])[:_METHOD_BYTES]
        found = (self._head_tail + data[start:]).find(_END_OF_HEAD)
        if found >= 0:
            return start + found + len(_END_OF_HEAD) - len(self._head_tail)
        self._head_tail = (self._head_tail + data[start:])[1 - len(_END_OF_HEAD) :]
        return len(data)

    def _pass_over(self) -> None:
        """Skip up to 128 frames, and stop at the peer's closing frame."""
        for _ in range(TRICKLE_FRAMES):
            self._pass_over_one()
            if self._at >= len(self._input) or self.protocol.state is not CLOSING or self.transport.is_closing():
                return

    def _pass_over_one(self) -> None:
        """Skip one frame. The library parses the peer's closing frame, and a frame that it has begun to parse."""
        data, start = self._input, self._at
        if self._frames.between_frames:
            self._passes_over = data[start] & 0x0F != CLOSE_OPCODE
        end = self._frames.advance(data, start, len(data))
        while not self._frames.between_frames and end < len(data):
            end = self._frames.advance(data, end, len(data))
        self._at = end
        if self._passes_over:
            return
        if not self._parser_is_lost:
            super().data_received(data[start:end])
        elif self._frames.between_frames:
            self.transport.close()

    def _count_unfinished(self) -> None:
        """Count the bytes of unfinished messages, in our buffers and the library's."""
        self._count_input(len(self._input) - self._at + len(self.protocol.reader.buffer) + len(self._fragments or b""))

    def give_up_message(self, error: Overloaded) -> None:
        """Close, and free the bytes of the unfinished message."""
        self._let_go_input()
        self._fragments = None
        if self._is_held:
            self._drop_input()
        self.close_soon(CloseCode.TOO_MANY, error.message)
        if not self._frames.between_frames:  # the library's parser is inside a frame that we drop, so it cannot go on
            self._passes_over = self._parser_is_lost = True
        self.protocol.reader.buffer.clear()

    def give_place_up(self) -> None:
        """Abort in favour of a newer connection, because this one has had time enough to get a session."""
        self.transport.abort()

    def _count_idle_frame(self) -> None:
        """Close the connection after 200 control frames and empty frames within a second."""
        self._idle_frames += 1
        if self._idle_frames == 1:
            self._idle_since = self.loop.time()
        elif self._idle_frames > MAX_IDLE_FRAMES_PER_SECOND:
            if self.loop.time() - self._idle_since < 1:
                self.close_soon(CloseCode.POLICY, "too many control frames or empty frames")
            self._idle_frames = 0

    def pause_writing(self) -> None:
        """Start to watch how fast the peer reads, because the transport's buffer is full."""
        super().pause_writing()
        self._watch_reading()
        self._congest(True)

    def resume_writing(self) -> None:
        """Stop counting unread output, because there is little of it."""
        super().resume_writing()
        self._congest(False)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the library clean up, and free everything that the connection holds."""
        super().connection_lost(exc)
        self._note_closing()
        self._receiver = None
        self._let_go()
        self.connections.discard(self)
        self.bounds.leave(self, self._place, self.share)
        # Break the reference cycles, because the garbage collector is set to run rarely.
        self.protocol.parser.close()
        vars(self.protocol).pop("select_subprotocol", None)

    def send_data(self) -> None:
        """Write the library's output, or an answer of ours if the library cannot read the request and has none.

        Then the body of a refused request is read and dropped, because a peer that is still writing when the connection
        breaks would not see the answer. The library closes the connection after a few seconds.
        """
        if self.protocol.eof_sent and self.protocol.state is CONNECTING and not self._is_refused:
            self._is_refused = True
            if self.request is None:
                self._refuse_unreadable()
            super().send_data()
            self.go_on()
        else:
            super().send_data()

    def _refuse_unreadable(self) -> None:
        """Answer a request with a body, or of another method. An incomplete request gets none: its peer is gone."""
        error = self.protocol.handshake_exc
        if not isinstance(error, InvalidMessage) or (
            isinstance(error.__cause__, EOFError) and self.protocol.reader.eof
        ):
            return
        if self._method.startswith(_READABLE):
            response = self.protocol.reject(
                HTTPStatus.BAD_REQUEST, "send a WebSocket handshake, in HTTP/1.1 and without a body\n"
            )
        else:
            response = self.protocol.reject(HTTPStatus.METHOD_NOT_ALLOWED, "connect a WebSocket: this takes GET only\n")
            response.headers["Allow"] = "GET, HEAD"
        self.transport.write(response.serialize())

    def _note_closing(self) -> None:
        if self._gone is not None and self.protocol.state is not OPEN and not self._gone.done():
            self._gone.set_result(None)

    def _deliver(self, data: bytes) -> None:
        self._begin_anew()
        if self._receiver is not None:
            self._receiver(data, text=self._is_text)

    def _write(self) -> None:
        self.send_data()
        self._bound_unread()

    @property
    def unread_bytes(self) -> int:
        """The unread bytes in this process, without those in the operating system's buffer."""
        return int(self.transport.get_write_buffer_size())

    def _watch_reading(self) -> None:
        """Let `check_reading()` watch the peer if 30 KiB are unread, here and in the system's buffer together."""
        if self._unread is None and (unread := count_unread(self.transport)) >= MIN_READ_BYTES:
            self._unread = Unread(unread, self.loop.time())

    def _bound_unread(self, just_written: int = 0) -> None:
        """Cut off a peer with more than two send buffers unread. One large message into an empty buffer is free."""
        unread = self.unread_bytes
        if unread <= just_written:
            self._lone_bytes = just_written  # the buffer was empty, so this message alone may exceed the bound
        elif unread - max(self._lone_bytes, just_written) > MAX_BUFFERS * self.send_buffer_bytes:
            self.cut_off()
        if self._is_congested:
            self._count_unsent()

    def cut_off(self) -> None:
        """Abort the connection, because the peer reads too slowly."""
        self.too_slow = True
        self.transport.abort()
