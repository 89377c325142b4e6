"""How late the messages of NATS are: for how long what the server sends now waits before this process reads it.

The answer to a flush stands in the same queue as the messages. Nothing is measured unless somebody asks.
"""

import asyncio
from collections.abc import Awaitable, Callable

from protocol.errors import Unavailable

FRESH_SECONDS = 0.1


class QueueLag:
    """The lag of one connection. `flush` returns when all that was sent before has been handled."""

    def __init__(self, flush: Callable[[], Awaitable[None]]) -> None:
        self._flush = flush
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._began = 0.0
        self._ended = 0.0
        self._last = 0.0

    def seconds(self, now: float) -> float:
        """Return the lag in seconds, as far as it is known at `now`; begin to measure it if it is not.

        A measurement that is under way has taken so long at least.
        """
        if self._task is not None:
            return max(now - self._began, self._last)
        if now - self._ended <= FRESH_SECONDS:
            return self._last
        self._began, self._last = now, 0.0
        self._task = self._loop.create_task(self._measure(), name="measure the lag of NATS")
        return 0.0

    async def _measure(self) -> None:
        try:
            await self._flush()
            self._last = self._loop.time() - self._began
        except Unavailable:
            self._last = 0.0
        finally:
            self._ended, self._task = self._loop.time(), None
