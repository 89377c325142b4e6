"""What the server sends, handed over where the socket delivers it, for the sake of the hot path.

The library wakes a task for each chunk that arrives, tries regular expressions one after the other, and parses the
headers of each message anew: a quarter of a gateway's time when measured. Here the messages of direct subscriptions
(`protocol.runtime.direct`) go straight from the socket's callback to their handlers. Whatever else the server says is
left to the library, and while it is busy with that, everything: the order in which the server spoke is kept.
"""

import asyncio
import sys
from functools import lru_cache

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.protocol.parser import AWAITING_CONTROL_LINE

from protocol.runtime.direct import HandOver

MAX_KEPT_BYTES = 64 * 1024
_MAX_LINE_BYTES = 4096
_LINE_BREAK = b"\r\n"
_VERSION = b"NATS/1.0\r\n"  # how headers begin that carry no status (ADR-4)
_BEGIN_MESSAGES = b"MH"


class Reading:
    """Stands before the reader of one connection."""

    def __init__(self, client: Client, reader: asyncio.StreamReader) -> None:
        self._client = client
        self._reader = reader
        self._leave_to_library = reader.feed_data
        self._kept = b""

    def feed(self, data: bytes) -> None:
        """Handle the direct messages at the front of what has arrived, and leave the rest to the library."""
        if self._kept:
            data, self._kept = self._kept + data, b""
        at = self._hand_over(data) if self._library_is_idle() else 0
        if at < len(data):
            self._leave_to_library(data[at:])

    def _library_is_idle(self) -> bool:
        """Tell whether the library waits for data and has handled all that it was given."""
        parser = self._client._ps  # noqa: SLF001  the library has no other way in
        waits = self._reader._waiter is not None  # type: ignore[attr-defined]  # noqa: SLF001
        return waits and parser.state == AWAITING_CONTROL_LINE and not parser.buf

    def _hand_over(self, data: bytes) -> int:
        """Hand over what can be; return where the first message begins that can't."""
        at, subscriptions = 0, self._client._subs  # noqa: SLF001
        while at < len(data):
            ends, sid, subject, reply, headers, payload = _find(data, at)
            if ends > len(data):
                return self._keep(data, at)
            subscription = subscriptions.get(sid)
            if subscription is None or not isinstance(subscription._pending_queue, HandOver):  # noqa: SLF001
                break
            message = Msg(self._client, subject.decode(), reply.decode(), payload, headers, None, False, sid)
            subscription._pending_queue.put_nowait(message)  # noqa: SLF001
            at = ends
        return at

    def _keep(self, data: bytes, at: int) -> int:
        """Keep a small beginning of a message until the rest of it comes; return what of the data is dealt with."""
        if len(data) - at > MAX_KEPT_BYTES:
            return at
        self._kept = data[at:]
        return len(data)


def divert(client: Client) -> None:
    """Have a connected client's messages handed over as they arrive; to be done again after each reconnect."""
    reader = getattr(client._transport, "_io_reader", None)  # noqa: SLF001
    assert reader is not None, "a connected client reads"
    reader.feed_data = Reading(client, reader).feed


_Found = tuple[int, int, bytes, bytes, dict[str, str] | None, bytes]
_FOREIGN: _Found = (0, -1, b"", b"", None, b"")
_INCOMPLETE: _Found = (sys.maxsize, -1, b"", b"", None, b"")


def _find(data: bytes, at: int) -> _Found:
    """Return end, sid, subject, reply, headers and payload of the message that begins at `at`.

    No subscription has the sid of what is no message; the end of an incomplete one lies behind the data.
    """
    body = data.find(_LINE_BREAK, at, at + _MAX_LINE_BYTES) + len(_LINE_BREAK)
    if body < at:
        return _INCOMPLETE if data[at] in _BEGIN_MESSAGES and len(data) - at < _MAX_LINE_BYTES else _FOREIGN
    try:
        return _read(data, data[at:body].split(), body)
    except (ValueError, IndexError):
        return _FOREIGN


def _read(data: bytes, words: list[bytes], body: int) -> _Found:
    """Read a message by its line: `MSG subject sid [reply] size`, `HMSG subject sid [reply] size-of-headers size`."""
    ends = body + int(words[-1])
    past = ends + len(_LINE_BREAK)
    if words[0] == b"MSG":
        return past, int(words[2]), words[1], words[3] if len(words) == 5 else b"", None, data[body:ends]
    starts = body + int(words[-2])
    block = data[body:starts]
    if words[0] != b"HMSG" or not block.startswith(_VERSION):
        return _FOREIGN
    return past, int(words[2]), words[1], words[3] if len(words) == 6 else b"", _headers(block), data[starts:ends]


@lru_cache(maxsize=1024)
def _headers(block: bytes) -> dict[str, str]:
    """Parse a block of headers. An agent sends the same token with each command, hence the cache."""
    return Client._parse_header_lines(block[len(_VERSION) :])  # noqa: SLF001
