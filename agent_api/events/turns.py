"""Waking many readers without a stop: some in each turn of the event loop, so that others get on in between.

A thousand who are woken at once hold the loop for tens of milliseconds, with whatever command arrives meanwhile.
"""

import asyncio
from collections import deque

READERS_A_TURN = 32


class Turns:
    """Those who are to be woken, in their order."""

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
