"""Remembers the highest file number of the new connections.

The system gives a file the lowest free number, so a high one tells that all lower ones were in use. libuv accepts a
connection without a free number and drops it, without a word to us.
"""

import asyncio


class OpenFiles:
    """The files of this process's connections."""

    def __init__(self) -> None:
        self._highest = 0

    def note(self, transport: asyncio.BaseTransport) -> None:
        """Note the file of a new connection."""
        socket = transport.get_extra_info("socket")
        if socket is not None:
            self._highest = max(self._highest, socket.fileno())

    def take_highest(self) -> int:
        """Return the highest number since the last call, or 0."""
        highest, self._highest = self._highest, 0
        return highest


OPEN_FILES = OpenFiles()  # one, as a process has one limit
