"""Side messages on standard error: writing them never fails and never waits for a reader.

A full pipe or a stopped terminal blocks its writer, so a thread writes, and nothing waits for that thread. Making the
pipe non-blocking would change it for all programs that share it. The thread bypasses `sys.stderr`, which would keep
unwritten text and write it again when the interpreter ends, with exit code 120.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Iterator

MAX_WAITING = 100
LAST_SECONDS = 0.5


class StderrWriter:
    """Texts on their way to a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self._writer = threading.Thread(target=self._write_all, name="stderr", daemon=True)
        self._writer.start()

    def say(self, text: str) -> None:
        """Write a text soon; drop it if a hundred are waiting."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(text)

    def finish(self) -> None:
        """Wait until all is written, for half a second at most."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=LAST_SECONDS)
            self._writer.join(LAST_SECONDS)

    def _write_all(self) -> None:
        while (text := self._waiting.get()) is not None:
            with contextlib.suppress(OSError):  # nobody has it open, or the terminal is gone
                self._write(text.encode(errors="replace"))

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]


@contextlib.contextmanager
def stderr_writer(descriptor: int) -> Iterator[StderrWriter]:
    """Give a writer to a file descriptor, and finish it."""
    said = StderrWriter(descriptor)
    try:
        yield said
    finally:
        said.finish()
