"""The lag of a process behind NATS: how long a message from the server waits until this process reads it.

A flush measures it, because its answer waits in the same queue as the messages. Nothing is measured until `seconds()`
is called.
"""

import asyncio
from collections.abc import Awaitable, Callable

from protocol.errors import Unavailable

FRESH_SECONDS = 0.1


class QueueLag:
    """The lag of one connection. `flush` returns when everything that the server sent before has been handled."""

    def __init__(self, flush: Callable[[], Awaitable[None]]) -> None:
        self._flush = flush
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._began = 0.0
        self._ended = 0.0
        self._last = 0.0

    def seconds(self, now: float) -> float:
        """Return the lag in seconds, and start a measurement if the last one is older than 0.1 s.

        The first call after a pause returns 0.
        """
        if self._task is not None:  # the lag is at least as long as this measurement has taken so far
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
