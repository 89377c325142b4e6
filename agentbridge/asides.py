"""What is said on standard error beside the matter: it never fails, and never waits for whoever should read it.

A pipe that is full, or a terminal that is stopped, holds up whoever writes to it; so a thread writes that nothing waits
for. Making the pipe non-blocking would make it so for all programs that share it. The thread writes past `sys.stderr`,
in which text that nobody took would stay, and be written again when the interpreter ends, for an exit code of 120.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Iterator

MAX_WAITING = 100
LAST_SECONDS = 0.5


class Asides:
    """Texts on their way to a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self._writer = threading.Thread(target=self._write_all, name="asides", daemon=True)
        self._writer.start()

    def say(self, text: str) -> None:
        """Have a text written; it is left out where a hundred are waiting."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(text)

    def finish(self) -> None:
        """Wait until all is written, but not for long where it is not read."""
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
def asides(descriptor: int) -> Iterator[Asides]:
    """Give what says asides on a file descriptor, and finish it."""
    said = Asides(descriptor)
    try:
        yield said
    finally:
        said.finish()
