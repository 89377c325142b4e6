"""When a peer takes so little of what waits for it that it should be cut off: one rule for all connections.

Sans-I/O but for the counting.
"""

import asyncio
import contextlib
import fcntl
import sys
import termios

MIN_READ_BYTES = 30 * 1024  # of what waits, in the time in which some of it must be read: 1 KiB a second over 30 s


class Unread:
    """What waits for a peer, from the moment at which it stops reading. Times are monotonic, in seconds."""

    __slots__ = ("_bytes", "_seen", "_since")

    def __init__(self, unread: int, now: float) -> None:
        self._bytes = self._seen = unread
        self._since = now

    def grew(self, written: int) -> None:
        """Note that more was written, so that it does not hide what the peer takes."""
        self._bytes += written
        self._seen += written

    def is_stalled(self, unread: int, now: float, for_seconds: float) -> bool:
        """Tell whether next to nothing was taken for longer; call this more often than that."""
        if unread <= self._bytes - MIN_READ_BYTES:
            self._since, self._bytes = now, unread
        return now - self._since > for_seconds

    def has_shrunk(self, unread: int) -> bool:
        """Tell whether the peer has taken anything since the last call."""
        shrunk, self._seen = unread < self._seen, unread
        return shrunk


def count_unread(transport: asyncio.Transport) -> int:
    """Return how many bytes the peer has not acknowledged: ours, and the system's, which takes up megabytes."""
    held = bytes(4)
    with contextlib.suppress(OSError):  # not every kind of system tells
        held = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, held)
    return transport.get_write_buffer_size() + int.from_bytes(held, sys.byteorder)
