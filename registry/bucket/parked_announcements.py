"""Parks the announcements of tenants whose store fails, so that they do not block other tenants.

A store is stuck if it refuses messages, if there is no room to make it, or if it has failed for two seconds while
another store took messages. Its announcements are tried again each second, in order. The newest 1,000 of a tenant are
kept; dropped ones are counted.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from protocol.errors import BridgeError
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.streams.stores import TenantStore
from registry.bucket.concurrency import for_each

STUCK_AFTER_SECONDS = 2.0
MAX_PARKED = 1000  # of a tenant
RETRY_SECONDS = 1.0
LOG_SECONDS = 60.0
T = TypeVar("T")

log = logging.getLogger(__name__)


class StuckStores:
    """Detects stores that fail while others work. Sans-I/O; `now` is in seconds."""

    def __init__(self) -> None:
        self._failing_since: dict[TenantStore, float] = {}
        self._last_success = float("-inf")
        self._refusing: set[TenantStore] = set()

    def took(self, store: TenantStore, now: float) -> None:
        """Note that a store has taken a message."""
        self._last_success = now
        if self._failing_since:
            self._failing_since.pop(store, None)
            self._refusing.discard(store)

    def failed(self, store: TenantStore, now: float, *, refused: bool) -> None:
        """Note that a store has failed. `refused`: it answered with a refusal."""
        self._failing_since.setdefault(store, now)
        if refused:
            self._refusing.add(store)

    def is_stuck(self, store: TenantStore, now: float) -> bool:
        """Tell whether a store is stuck, so that others need not wait for it."""
        since = self._failing_since.get(store)
        if since is None:
            return False
        return store in self._refusing or (now - since >= STUCK_AFTER_SECONDS and self._last_success > since)


class Parked(Generic[T]):
    """The announcements that wait for stuck stores. `publish` stores one, or raises a `BridgeError`."""

    def __init__(self, publish: Callable[[T], Awaitable[None]]) -> None:
        self.dropped = 0
        self._publish = publish
        self._waiting: dict[TenantStore, deque[T]] = {}
        self._lines = LogThrottle(LOG_SECONDS, asyncio.get_running_loop().time)

    def holds(self, store: TenantStore) -> bool:
        """Tell whether announcements wait for a store. Later ones must wait behind them."""
        return store in self._waiting

    def add(self, store: TenantStore, announcement: T) -> None:
        """Park an announcement."""
        waiting = self._waiting.setdefault(store, deque())
        if len(waiting) >= MAX_PARKED:
            waiting.popleft()
            self.dropped += 1
            if count := self._lines.due():
                log.error("%d changes of clients, the last for %s, are not announced", count, store.stream)
        waiting.append(announcement)

    async def run(self) -> None:
        """Try again each second, for ever."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            await for_each(list(self._waiting), self._retry)

    async def _retry(self, store: TenantStore) -> None:
        waiting = self._waiting[store]
        while waiting:
            announcement = waiting[0]
            try:
                await self._publish(announcement)
            except BridgeError:
                return
            if waiting and waiting[0] is announcement:  # else it was dropped meanwhile
                waiting.popleft()
        del self._waiting[store]
