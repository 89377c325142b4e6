"""Side messages on standard error: writing them never fails and never waits for a reader.

A full pipe or a stopped terminal blocks its writer. So a thread writes, and nothing waits for it. A non-blocking pipe
is no alternative, because it would be so for all programs that share it. The thread bypasses `sys.stderr`, because that
keeps unwritten text and writes it again when the interpreter ends, with exit code 120.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Iterator

MAX_WAITING = 100
LAST_SECONDS = 0.5


class StderrWriter:
    """Writes texts to a file descriptor in a thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self._writer = threading.Thread(target=self._write_all, name="stderr", daemon=True)
        self._writer.start()

    def say(self, text: str) -> None:
        """Queue a text, or drop it if a hundred texts are waiting."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(text)

    def finish(self) -> None:
        """Wait until all is written, for half a second at most."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=LAST_SECONDS)
            self._writer.join(LAST_SECONDS)

    def _write_all(self) -> None:
        while (text := self._waiting.get()) is not None:
            with contextlib.suppress(OSError):  # the reader or the terminal is gone
                self._write(text.encode(errors="replace"))

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]


@contextlib.contextmanager
def stderr_writer(descriptor: int) -> Iterator[StderrWriter]:
    """Yield a writer to a file descriptor. The exit waits up to half a second for its texts."""
    said = StderrWriter(descriptor)
    try:
        yield said
    finally:
        said.finish()
