"""The fast path in: messages go from the socket's callback straight to their handlers.

nats-py wakes a task for each chunk that arrives, tries regular expressions one after the other, and parses the headers
of each message anew. That took a quarter of a gateway's time.

Here the messages of direct subscriptions (`protocol.runtime.nats.library.subscriptions`) skip all of it. Everything
else, other messages and lines such as `PING`, goes to the library unchanged. The server's order is kept: a direct
message behind one of the library's waits until the library has handled that one.

One turn of the event loop handles messages for 2 ms. Then the socket pauses and the unread bytes wait for the next
turn. Without this bound a flood on one subject held the loop for 240 ms, because uvloop reads up to 8 MB in a row.
"""

import asyncio
import sys
import time
from functools import lru_cache
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.protocol.parser import AWAITING_CONTROL_LINE

from protocol.runtime.nats.library.client import parse_headers
from protocol.runtime.nats.library.subscriptions import HandOver

MAX_KEPT_BYTES = 64 * 1024
BUDGET_SECONDS = 0.002
_LINE_BREAK = b"\r\n"
_VERSION = b"NATS/1.0\r\n"  # first line of a header block without a status (ADR-4)


class IncomingReader:
    """Splits the bytes of one connection between direct handlers and the library's reader."""

    def __init__(self, client: Client, reader: asyncio.StreamReader) -> None:
        self._client = client
        self._reader = reader
        self._feed_library = reader.feed_data
        self._kept: list[bytes] = []  # the start of an incomplete message
        self._missing = 0  # bytes of the kept message
        self._waiting = b""  # complete messages for the next turn of the loop
        self._owed = 0  # bytes that the library still lacks of a message it has begun to read
        self._loop = asyncio.get_running_loop()

    def feed(self, data: bytes) -> None:
        """Pass on the bytes that have arrived. The socket calls this in place of the library's reader."""
        if self._waiting:
            self._waiting += data
            self._pause()  # again, because the library's reader may have resumed the socket
            return
        if self._kept:
            self._kept.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data, self._kept = b"".join(self._kept), []
        if self._owed:
            owed, self._owed = self._owed, max(0, self._owed - len(data))
            self._feed_library(data[:owed])
            data = data[owed:]
        if data:
            self._take(data)

    def take_over(self) -> None:
        """Take over from the library's reader, which may be in the middle of a line or of a message."""
        parser, unread = self._client._ps, self._reader._buffer  # type: ignore[attr-defined]  # noqa: SLF001
        rest = bytes(unread)
        unread.clear()
        if parser.state == AWAITING_CONTROL_LINE:
            rest = bytes(parser.buf) + rest
            parser.buf.clear()
        else:
            self._owed = max(0, parser.needed + len(_LINE_BREAK) - len(parser.buf))
        if rest:
            self.feed(rest)

    def _take(self, data: bytes) -> None:
        """Handle messages and lines until the data ends, 2 ms are over, or a message is incomplete or has to wait."""
        at, until, is_idle = 0, time.perf_counter() + BUDGET_SECONDS, self._library_is_idle()
        subscriptions = self._client._subs  # noqa: SLF001
        while at < len(data):
            if at and time.perf_counter() >= until:
                self._wait(data[at:])
                return
            ends, sid, subject, reply, block, payload = _find(data, at)
            subscription = subscriptions.get(sid)
            queue: Any = None if subscription is None else subscription._pending_queue  # noqa: SLF001
            if ends > len(data):
                self._keep(data, at, ends, is_ours=isinstance(queue, HandOver))
                return
            if isinstance(queue, HandOver):
                if not is_idle:  # the library still handles an earlier message, which ours must not overtake
                    self._wait(data[at:])
                    return
                if queue.credit is not None:
                    queue.count(queue.credit)
                if queue.drops is None or not queue.drops(subject, block):
                    headers = _headers(block) if block else None
                    # Any bytes may stand in a reply. What is not UTF-8 becomes a subject that is no inbox.
                    to = reply.decode(errors="replace")
                    queue.handle(
                        Msg(self._client, subject.decode(errors="replace"), to, payload, headers, None, False, sid)
                    )
            elif queue is not None or sid < 0:  # else its subscription has just ended: skip the message
                self._feed_library(data[at:ends])
                is_idle = False
            at = ends

    def _keep(self, data: bytes, at: int, ends: int, *, is_ours: bool) -> None:
        """Keep the beginning of a message until the rest of it comes; let the library assemble a large one of its own.

        Not one of ours: the library ends the connection over a line with an odd reply.
        """
        if is_ours or len(data) - at <= MAX_KEPT_BYTES:
            self._kept = [data[at:]]
            self._missing = ends - len(data) if ends < sys.maxsize else 1
            return
        self._owed = max(0, ends - len(data)) if ends < sys.maxsize else 0
        self._feed_library(data[at:])

    def _wait(self, data: bytes) -> None:
        """Keep unread data for the next turn of the loop, and pause the socket."""
        self._waiting = data
        self._pause()
        self._loop.call_soon(self._go_on)

    def _pause(self) -> None:
        if self._transport.is_reading():
            self._transport.pause_reading()

    def _go_on(self) -> None:
        """Go on in a later turn of the loop, once the library has handled its data."""
        if self._transport.is_closing() or self._reader.at_eof():  # the connection is lost; drop its unread data
            self._waiting = b""
            return
        if self._reader._waiter is None:  # type: ignore[attr-defined]  # noqa: SLF001
            self._loop.call_soon(self._go_on)
            return
        data, self._waiting = self._waiting, b""
        self._take(data)
        pauses_itself = self._reader._paused  # type: ignore[attr-defined]  # noqa: SLF001
        if not self._waiting and not pauses_itself and not self._transport.is_reading():
            self._transport.resume_reading()

    def _library_is_idle(self) -> bool:
        """Tell whether the library has handled all its data and waits for more."""
        parser = self._client._ps  # noqa: SLF001  the library has no other way in
        waits = self._reader._waiter is not None  # type: ignore[attr-defined]  # noqa: SLF001
        return waits and parser.state == AWAITING_CONTROL_LINE and not parser.buf

    @property
    def _transport(self) -> Any:
        return self._reader._transport  # type: ignore[attr-defined]  # noqa: SLF001


def divert(client: Client) -> None:
    """Put an `IncomingReader` before a connected client's reader. Call it again after each reconnect."""
    reader = getattr(client._transport, "_io_reader", None)  # noqa: SLF001
    assert reader is not None, "a connected client reads"
    incoming = IncomingReader(client, reader)
    reader.feed_data = incoming.feed
    incoming.take_over()


_Found = tuple[int, int, bytes, bytes, bytes, bytes]
_OF_THE_LIBRARY = (-1, b"", b"", b"", b"")
_INCOMPLETE: _Found = (sys.maxsize, *_OF_THE_LIBRARY)


def _find(data: bytes, at: int) -> _Found:
    """Return end, sid, subject, reply, header block and payload of the message that begins at `at`.

    The sid is -1 for everything that the library must read itself: lines such as `PING`, and messages with a status. If
    the message is incomplete, its end lies beyond the data.
    """
    line_ends = data.find(_LINE_BREAK, at)
    if line_ends < 0:
        return _INCOMPLETE
    body = line_ends + len(_LINE_BREAK)
    try:
        return _read(data, data[at:line_ends].split(b" "), body)  # other white space may stand in a reply
    except (ValueError, IndexError):
        return (body, *_OF_THE_LIBRARY)


def _read(data: bytes, words: list[bytes], body: int) -> _Found:
    """Read a message by its first line, `MSG subject sid [reply] size` or `HMSG subject sid [reply] headers size`."""
    ends = body + int(words[-1])
    past = ends + len(_LINE_BREAK)
    if words[0] not in (b"MSG", b"HMSG"):
        raise ValueError
    if words[0] == b"MSG":
        return past, int(words[2]), words[1], words[3] if len(words) == 5 else b"", b"", data[body:ends]
    starts = body + int(words[-2])
    block = data[body:starts]
    if not block.startswith(_VERSION):
        return (past, *_OF_THE_LIBRARY)
    return past, int(words[2]), words[1], words[3] if len(words) == 6 else b"", block, data[starts:ends]


@lru_cache(maxsize=1024)
def _headers(block: bytes) -> dict[str, str]:
    """Parse a header block. It is cached, because an agent sends the same token with each command."""
    try:
        return parse_headers(block[len(_VERSION) :])
    except (ValueError, IndexError):  # nothing in it can be believed
        return {}
