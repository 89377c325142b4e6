"""Calls back when a token expires, to the moment and without leeway."""

import asyncio
import time
from collections.abc import Callable

MAX_TIMER_SECONDS = 86_400.0


class Expiry:
    """A watch over one token at a time. It holds nobody once it is stopped."""

    __slots__ = ("_loop", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, expires_at: float, on_end: Callable[[], None]) -> None:
        """Call `on_end` at this Unix time, or at once if it has passed. This replaces the former watch."""
        self.stop()
        remaining = expires_at - time.time()
        if remaining <= 0:
            on_end()
        elif remaining != float("inf"):
            self._timer = self._loop.call_later(min(remaining, MAX_TIMER_SECONDS), self.watch, expires_at, on_end)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
