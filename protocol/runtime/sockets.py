"""One WebSocket of a peer: messages handed over as they arrive, writes that never wait, buffers that are bounded.

The library's own message queue and keepalive task are passed by: they cost memory for each connection and a wake-up for
each frame, and its keepalive never evicts a peer that has stopped reading. Messages therefore go from the socket's
callback to the session core without a detour, and a peer that leaves too much unread is cut off.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any, Protocol

from websockets.asyncio.server import Server, ServerConnection
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, Event
from websockets.server import ServerProtocol

from protocol.errors import CloseCode
from protocol.runtime.framing import Boundaries, text_frame, whole_text

MAX_EARLY_MESSAGES = 16
MAX_EARLY_BYTES = 1024 * 1024

log = logging.getLogger(__name__)
_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


class Receiver(Protocol):
    """Takes the messages of a peer."""

    def __call__(self, data: bytes, *, text: bool) -> None:
        """Take one whole message; must not yield."""


class BoundedSocket(ServerConnection):
    """A connection that hands messages to a receiver; what comes before there is one is kept, within a bound."""

    send_buffer_bytes = 1024 * 1024
    too_slow = False
    _receiver: Receiver | None = None
    _early: list[tuple[bytes, bool]] | None = None
    _fragments: bytearray | None = None
    _is_text = False
    _gone: asyncio.Future[None] | None = None

    def __init__(self, protocol: ServerProtocol, server: Server, **options: Any) -> None:
        super().__init__(protocol, server, **options)
        self._boundaries = protocol.reader = Boundaries(protocol.reader)

    async def wait_closing(self) -> None:
        """Return as soon as either side has begun to close the connection, or it is lost."""
        if self.protocol.state is OPEN:
            self._gone = self.loop.create_future()
            await self._gone

    def receive_by(self, receiver: Receiver) -> None:
        """Hand over all messages from now on, those that came early first."""
        early, self._early = self._early or [], None
        self._receiver = receiver
        for data, text in early:
            receiver(data, text=text)

    def send_text(self, data: bytes) -> None:
        """Write a text frame without waiting; cut off a peer that has left too much unread before."""
        if self.protocol.state is OPEN:
            self.transport.write(text_frame(data))
            self._bound_unread(len(data))

    def send_ping(self, on_pong: Callable[[], None]) -> None:
        """Write a ping; `on_pong` is called when its answer comes."""
        if self.protocol.state is not OPEN:
            return
        payload = secrets.token_bytes(4)
        waiter: asyncio.Future[float] = self.loop.create_future()
        waiter.add_done_callback(lambda done: None if done.cancelled() or done.exception() else on_pong())
        self.pending_pings[payload] = (waiter, self.loop.time())
        self.protocol.send_ping(payload)
        self._write()

    def close_soon(self, code: int, reason: str) -> None:
        """Start the closing handshake; the handler's end waits for it, within `close_timeout`."""
        if self.protocol.state is OPEN:
            self.protocol.send_close(code, reason)
            self._write()
            self._note_closing()

    # --- callbacks of the library ---

    def process_event(self, event: Event) -> None:
        """Assemble messages from data frames (RFC 6455 section 5.4); leave the rest to the library."""
        if not isinstance(event, Frame) or self.request is None or event.opcode not in _DATA:
            super().process_event(event)
            return
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
        """Take a whole message at once; let the library parse all else, and notice when that ended the connection."""
        if self._boundaries.between_frames and self._fragments is None and self.protocol.state is OPEN:
            message, limit = whole_text(data), self.protocol.max_message_size
            if message is not None and (limit is None or len(message) <= limit):
                self._is_text = True
                self._deliver(message)
                return
        super().data_received(data)
        self._bound_unread()
        self._note_closing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the library clean up, notice, and break the circles through which ended connections hold each other.

        Without that only a full collection frees them, which is rare here: the collector is told to work seldom.
        """
        super().connection_lost(exc)
        self._note_closing()
        self._receiver = None
        self.protocol.parser.close()
        vars(self.protocol).pop("select_subprotocol", None)

    def _note_closing(self) -> None:
        if self._gone is not None and self.protocol.state is not OPEN and not self._gone.done():
            self._gone.set_result(None)

    def _deliver(self, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver(data, text=self._is_text)
            return
        self._early = self._early if self._early is not None else []
        if len(self._early) < MAX_EARLY_MESSAGES and sum(len(early) for early, _ in self._early) < MAX_EARLY_BYTES:
            self._early.append((data, self._is_text))
        else:
            self.close_soon(CloseCode.POLICY, "too much was sent before the session began")

    def _write(self) -> None:
        self.send_data()
        self._bound_unread()

    @property
    def unread_bytes(self) -> int:
        """How much the peer has not taken yet, beyond what the operating system keeps for it."""
        return int(self.transport.get_write_buffer_size())

    def _bound_unread(self, just_written: int = 0) -> None:
        """Cut off a peer that leaves too much unread; one that reads is not cut off for one large message."""
        if self.unread_bytes - just_written > self.send_buffer_bytes:
            self.too_slow = True
            self.transport.abort()
