"""A signal that comes while a process still imports ends it as later ones do, with exit code 0.

Importing takes half a second, in which nothing is begun that would have to be ended. To be imported first.
"""

import os
import signal


def end_at_once() -> None:
    """Have SIGINT and SIGTERM end this process, until the process handles them itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
