"""Shows a command's progress while it runs: a bar on a terminal, lines of JSON for programs, else nothing.

It goes to standard error, so that standard output has only the result. No command fails or waits because nobody reads
its progress.
"""

import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator

from agentbridge.cli import output
from agentbridge.cli.stderr import StderrWriter, stderr_writer
from protocol.messages import ProgressMessage
from protocol.runtime.commands.progress import OnProgress

BAR_CHARS = 24
FALLBACK_COLUMNS = 80
GAP = "  "


class Display:
    """Shows no progress. `on_progress` is None if there is no display, so that the application need not send any."""

    on_progress: OnProgress | None = None

    def __init__(self, said: StderrWriter) -> None:
        self._said = said

    def clear(self) -> None:
        """Clear the line for the next output."""

    def say(self, sentence: str) -> None:
        """Print a sentence in place of the progress."""
        self.clear()
        self._said.say(f"{sentence}\n")


class Lines(Display):
    """Prints each progress message as one line of JSON."""

    def __init__(self, said: StderrWriter) -> None:
        super().__init__(said)
        self.on_progress = self._print

    def _print(self, message: ProgressMessage) -> None:
        self._said.say(f"{output.one_line(message)}\n")


class Bar(Display):
    """A bar on one line of the terminal. It uses no escape sequences, because some terminals lack them."""

    def __init__(self, said: StderrWriter) -> None:
        super().__init__(said)
        self.on_progress = self._show
        self._used = 0

    def clear(self) -> None:
        """Blank the line."""
        if self._used:
            self._said.say(f"\r{' ' * self._used}\r")
            self._used = 0

    def _show(self, message: ProgressMessage) -> None:
        text = described(message, _columns() - 1)  # writing into the last column would begin a new line
        width = sum(map(_width, text))
        self._said.say(f"\r{text}{' ' * (self._used - width)}")
        self._used = width


@contextlib.contextmanager
def display(*, as_json: bool) -> Iterator[Display]:
    """Yield the display for this output. The exit clears it from the terminal."""
    with stderr_writer(sys.stderr.fileno()) as said:
        shown = _kind(as_json=as_json)(said)
        try:
            yield shown
        finally:
            shown.clear()


def _kind(*, as_json: bool) -> type[Display]:
    if as_json:
        return Lines
    return Bar if sys.stderr.isatty() else Display


def described(message: ProgressMessage, columns: int) -> str:
    """Return a message on one line, `columns` wide at most. Characters that could move the cursor are escaped."""
    text = GAP.join(filter(None, (_amount(message), output.printable(message.message or ""))))
    return _cut(text, columns)


def _amount(message: ProgressMessage) -> str:
    """Return a bar if the total is known, else a bare number."""
    if message.total is None or message.total <= 0:
        return f"{message.progress:g}"
    part = min(1.0, max(0.0, message.progress / message.total))
    done = int(part * BAR_CHARS)
    return f"[{'#' * done}{'-' * (BAR_CHARS - done)}] {int(part * 100):3}%"


def _cut(text: str, columns: int) -> str:
    used = 0
    for at, char in enumerate(text):
        used += _width(char)
        if used > columns:
            return text[:at]
    return text


def _width(char: str) -> int:
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or FALLBACK_COLUMNS
    except OSError:
        return FALLBACK_COLUMNS
