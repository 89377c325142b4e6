"""Wakes many readers in portions, some in each turn of the event loop, so that other work runs in between.

Waking a thousand at once blocks the loop, and with it every command, for tens of milliseconds.
"""

import asyncio
from collections import deque

READERS_A_TURN = 32


class Wakeups:
    """The listeners to wake, in order."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sleeping: deque[asyncio.Event] = deque()

    def wake(self, sleeper: asyncio.Event) -> None:
        """Set an event in one of the next turns."""
        if not self._sleeping:
            self._loop.call_soon(self._wake_some)
        self._sleeping.append(sleeper)

    def _wake_some(self) -> None:
        for _ in range(min(READERS_A_TURN, len(self._sleeping))):
            self._sleeping.popleft().set()
        if self._sleeping:
            self._loop.call_soon(self._wake_some)
