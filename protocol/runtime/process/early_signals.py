"""Lets a signal during the imports end the process with exit code 0, as a later one does.

Importing takes half a second, and starts nothing that would have to be ended. Import this module first.
"""

import os
import signal

EXIT_INTERRUPTED = 130  # as shells have it
BOTH = (signal.SIGINT, signal.SIGTERM)


def end_at_once(code: int = 0, numbers: tuple[signal.Signals, ...] = BOTH) -> None:
    """Let these signals end this process with `code`, until it handles them itself. Take those that were held back."""
    for number in numbers:
        signal.signal(number, lambda *_: os._exit(code))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def hold_back() -> None:
    """Keep signals for the program that this process becomes by `exec`. It takes them in `end_at_once()`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, BOTH)
