"""Logs faults that belong to no request, at most one line in ten seconds for each kind.

- Errors of futures and tasks that nobody awaits; the event loop reports them. An outage of NATS causes such errors
  without any fault of ours, because the waiters end with the connection.
- Running out of open files. libuv then accepts each new connection and closes it without a word.
"""

import asyncio
import logging
import os
import resource
from typing import Any

import nats.errors

from protocol.errors import BridgeError
from protocol.runtime.connections.open_files import OPEN_FILES
from protocol.runtime.log_throttle import LogThrottle

LOOK_SECONDS = 1.0
LOG_SECONDS = 10.0
LAST_FILES = 16  # numbers just below the limit; long-lived connections may hold some of them
FEW_FILES = 1100  # a hundred connections, and what a process opens besides

log = logging.getLogger(__name__)


def log_faults_of(loop: asyncio.AbstractEventLoop) -> None:
    """Log errors that nobody awaits: a traceback for a fault of ours, one line for those of an outage of NATS."""
    lines = LogThrottle(LOG_SECONDS, loop.time)

    def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, BridgeError | nats.errors.Error | OSError | TimeoutError):
            loop.default_exception_handler(context)
        elif count := lines.due():
            why = str(error) or type(error).__name__
            log.warning("%d errors that nobody awaits, as in an outage of NATS; the last: %s", count, why)

    loop.set_exception_handler(tell)


class FileWatch:
    """Checks each second whether this process can open another file, or could not since the last look.

    If not, it logs an error.
    """

    def __init__(self) -> None:
        self._lines = LogThrottle(LOG_SECONDS, asyncio.get_running_loop().time)

    async def run(self) -> None:
        """Check the limit once, then check every second, for ever, whether a file can be opened."""
        # A short burst is over before the next check, so warn of a low limit in advance.
        self.look_at_limit()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look_at_limit(self) -> None:
        """Warn if the limit of open files is so low that a burst of connections can reach it."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit < FEW_FILES:
            sentence = "only %d files may be open, so a burst of connections may be dropped: raise that (ulimit -n)"
            log.warning(sentence, limit)

    def look(self) -> bool:
        """Return whether all files could be opened since the last look. Log an error if not."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        was_reached = OPEN_FILES.take_highest() >= max(limit - LAST_FILES, 1)
        try:
            os.close(os.dup(2))
        except OSError as exc:
            self._tell(f"no file can be opened ({exc.strerror}), so connections are dropped", limit)
            return False
        if was_reached:
            self._tell("no file could be opened for a moment, so connections may have been dropped", limit)
        return not was_reached

    def _tell(self, what: str, limit: int) -> None:
        if self._lines.due():
            log.error("%s: %d may be open; raise that (ulimit -n), or lower AGENTBRIDGE_MAX_CONNECTIONS", what, limit)
