"""Detects a peer that reads too slowly: less than 1 KiB a second over 30 s. The same rule for all connections.

Sans-I/O, except `count_unread()`.
"""

import asyncio
import contextlib
import fcntl
import sys
import termios

MIN_READ_BYTES = 30 * 1024  # the least that a peer must read within 30 s


class Unread:
    """The unread output of a peer, watched since its buffer filled. Times are monotonic, in seconds."""

    __slots__ = ("_bytes", "_seen", "_since")

    def __init__(self, unread: int, now: float) -> None:
        self._bytes = self._seen = unread
        self._since = now

    def grew(self, written: int) -> None:
        """Add newly written bytes, because they would otherwise hide the peer's reading."""
        self._bytes += written
        self._seen += written

    def is_stalled(self, unread: int, now: float, for_seconds: float) -> bool:
        """Tell whether the peer has read less than 30 KiB for `for_seconds`. Call this more often than that."""
        if unread <= self._bytes - MIN_READ_BYTES:
            self._since, self._bytes = now, unread
        return now - self._since > for_seconds

    def has_shrunk(self, unread: int) -> bool:
        """Tell whether the peer has read anything since the last call."""
        shrunk, self._seen = unread < self._seen, unread
        return shrunk


def count_unread(transport: asyncio.Transport) -> int:
    """Return the bytes that the peer has not acknowledged, in our buffer and the system's, which can hold megabytes."""
    held = bytes(4)
    with contextlib.suppress(OSError):  # some systems cannot tell
        held = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, held)
    return transport.get_write_buffer_size() + int.from_bytes(held, sys.byteorder)
