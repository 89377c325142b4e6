"""Lets a signal during the imports end the process with exit code 0, as a later one does.

Importing takes half a second, and starts nothing that would have to be ended. Import this module first.
"""

import os
import signal


def end_at_once() -> None:
    """Let SIGINT and SIGTERM end this process, until the process handles them itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
