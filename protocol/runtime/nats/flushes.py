"""Flushes that share round trips: all callers that come during one round trip wait together for the next.

A gateway confirms the subscription of each client that connects. If a thousand connect in a second, one round trip
confirms hundreds of them.
"""

import asyncio
from collections.abc import Awaitable, Callable

from protocol.errors import Unavailable


class Flushes:
    """Round trips to the server, one at a time. `round_trip` returns when everything sent so far is processed."""

    def __init__(self, round_trip: Callable[[], Awaitable[None]]) -> None:
        self._round_trip = round_trip
        self._loop = asyncio.get_running_loop()
        self._next: list[asyncio.Future[None]] = []
        self._under_way: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Wait for a round trip that begins after this call. Raises `Unavailable` if the server goes away."""
        await self.begin()

    def begin(self) -> asyncio.Future[None]:
        """Return the outcome of a round trip that begins after this call."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._next.append(waiter)
        if self._task is None:
            self._task = self._loop.create_task(self._run(), name="flush NATS")
        return waiter

    def fail(self) -> None:
        """Raise `Unavailable` in all waiters, because no answer will come on this connection."""
        if self._task is not None:
            # The library swallows some cancellations. So the task also checks in `_run()` that it is still the one.
            self._task.cancel()
            self._task = None
        _settle([*self._under_way, *self._next], _away())
        self._under_way, self._next = [], []

    async def _run(self) -> None:
        """Make round trips while there are waiters and `fail()` has not replaced this task."""
        while self._next and self._task is asyncio.current_task():
            batch, self._next = self._next, []
            self._under_way = batch
            try:
                await self._round_trip()
                error = None
            except Exception as exc:
                error = _away()
                error.__cause__ = exc
            _settle(batch, error)
        if self._task is asyncio.current_task():
            self._under_way, self._task = [], None


def _settle(waiters: list[asyncio.Future[None]], error: Unavailable | None) -> None:
    for waiter in waiters:
        if waiter.done():  # its caller has gone
            continue
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)


def _away() -> Unavailable:
    return Unavailable("NATS is away; try again in a moment")
