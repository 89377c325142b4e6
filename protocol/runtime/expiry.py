"""Calls back exactly when a token expires, without leeway."""

import asyncio
import time
from collections.abc import Callable

MAX_TIMER_SECONDS = 86_400.0


class Expiry:
    """Watches one token at a time. It keeps no reference after `stop()`."""

    __slots__ = ("_loop", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, expires_at: float, on_end: Callable[[], None]) -> None:
        """Call `on_end` at a Unix time, or soon if that has passed. This replaces the former token."""
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
