"""The hub: a feed of events for each tenant with readers, and the admission of readers.

The feeds share 32 MiB of recent messages: each of n feeds keeps an n-th part. A reader that falls behind these goes on
in the stream.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator

from agent_api.events.filters import Filters
from agent_api.events.history import History
from agent_api.events.reader import Reader
from agent_api.events.ring import MAX_BYTES, Ring
from agent_api.events.tenant_feed import LINGER_SECONDS, MANY_CONSUMERS, FeedParts, TenantFeed
from protocol.access import Principal
from protocol.errors import BridgeError, Overloaded
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams.stores import events_of
from protocol.runtime.streams.tenant_stores import TenantStores

MAX_READERS = 4000
MAX_READERS_PER_TENANT = 2000
MAX_READERS_PER_PRINCIPAL = 1000

_Whose = tuple[str, str]  # a tenant and a `sub`


class Hub:
    """Opens readers within their bounds. Feeds run as long as `following()` lasts."""

    def __init__(self, connection: Connection, stores: TenantStores, tasks: asyncio.TaskGroup) -> None:
        self.history = History(connection)
        self._parts = FeedParts(connection, stores, self.history)
        self._tasks = tasks
        self._feeds: dict[str, TenantFeed] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._closed: BridgeError | None = None
        self._of_principal: Counter[_Whose] = Counter()
        self._of_tenant: Counter[str] = Counter()
        connection.on_reconnect(self._begin_anew)

    async def start(self) -> None:
        """Subscribe for the answers of history."""
        await self.history.start()

    @contextlib.asynccontextmanager
    async def following(self, goodbye: BridgeError) -> AsyncIterator[None]:
        """Let feeds run while they have readers. On a regular exit end every reader with the error for a shutdown."""
        await self.start()
        yield
        self.close(goodbye)

    @contextlib.asynccontextmanager
    async def open(self, principal: Principal, filters: Filters, since: str | None = None) -> AsyncIterator[Reader]:
        """Yield a reader that begins now, or after the position `since`. An unreadable position is a gap.

        Raises `Overloaded` if there are too many readers, `Unavailable` while the stream cannot be followed, and after
        `close()` the error given to it. If the stream cannot be followed for long, the reader ends with `Unavailable`.
        """
        with self._counted((principal.tenant, principal.sub)):
            async with self._feed(principal.tenant).open(principal, filters, since) as reader:
                # `close()` may have come while the feed was starting. It has not seen this reader.
                self._require_open()
                yield reader

    def close(self, error: BridgeError) -> None:
        """End every reader with this error, and refuse new ones with it."""
        self._closed = error
        for tenant, feed in self._feeds.items():
            feed.end_readers(error)
            self._running[tenant].cancel()

    # --- readers ---

    @contextlib.contextmanager
    def _counted(self, whose: _Whose) -> Iterator[None]:
        """Count a reader. Raises `Overloaded` if there are too many, or the error of `close()`."""
        self._require_open()
        self._require_room(whose)
        tenant = whose[0]
        self._of_principal[whose] += 1
        self._of_tenant[tenant] += 1
        try:
            yield
        finally:
            self._of_principal -= Counter([whose])
            self._of_tenant -= Counter([tenant])

    def _require_room(self, whose: _Whose) -> None:
        if self._of_tenant.total() >= MAX_READERS:
            raise Overloaded("this process has too many readers of events; try again in a moment")
        if self._of_tenant[whose[0]] >= MAX_READERS_PER_TENANT:
            raise Overloaded("this process has too many readers of events of your tenant; close some of them")
        if self._of_principal[whose] >= MAX_READERS_PER_PRINCIPAL:
            raise Overloaded("too many readers of events are open for this token's `sub`; close some of them")

    def _require_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    # --- feeds ---

    def _feed(self, tenant: str) -> TenantFeed:
        """Return a tenant's feed. Start it if there is none."""
        feed = self._feeds.get(tenant)
        # All readers of a tenant share one feed, so a thousand readers need one consumer.
        if feed is None:
            feed = self._feeds[tenant] = TenantFeed(self._parts, events_of(tenant), Ring())
            self._share_memory()
            self._running[tenant] = self._tasks.create_task(self._run(tenant, feed), name=f"events of {tenant}")
        return feed

    async def _run(self, tenant: str, feed: TenantFeed) -> None:
        """Run a feed until it has no readers. If there are many feeds, it does not wait for readers to return."""
        try:
            await feed.run(0 if len(self._feeds) > MANY_CONSUMERS else LINGER_SECONDS)
        finally:
            del self._feeds[tenant], self._running[tenant]
            self._share_memory()

    def _share_memory(self) -> None:
        for feed in self._feeds.values():
            feed.fanout.ring.limit(MAX_BYTES // len(self._feeds))

    def _begin_anew(self) -> None:
        for feed in self._feeds.values():
            feed.begin_anew()
