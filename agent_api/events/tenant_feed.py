"""One tenant's feed of events: one consumer of its stream, while it has readers.

Messages go into the ring of recent messages, and their readers are woken to read them there. After a break the feed
goes on from the end of the ring. Messages that the stream has lost meanwhile are a gap for every reader. If the feed
cannot go on for ten seconds, its readers are ended, because silence would look as if nothing happened.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator

import nats.errors
from nats.aio.msg import Msg

from agent_api.events.cursor import Cursor
from agent_api.events.fanout import Fanout
from agent_api.events.filters import Filters
from agent_api.events.gaps import unknown
from agent_api.events.history import History
from agent_api.events.messages import read_message
from agent_api.events.reader import Reader
from agent_api.events.ring import Ring
from agent_api.events.wakeups import Wakeups
from protocol.access import Principal
from protocol.errors import BridgeError, Unavailable
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.consumer import HEARTBEAT_SECONDS, ConsumerOrder, ConsumerPlace, OrderedConsumer
from protocol.runtime.streams.positions import Position, parse_position
from protocol.runtime.streams.stores import TenantStore
from protocol.runtime.streams.tenant_stores import TenantStores
from protocol.subjects import ALL_NEWS

READY_SECONDS = 2.5  # 2 s of them for a registry that does not answer
LINGER_SECONDS = 60.0  # a reader that comes back within it finds its missed messages in memory
RETRY_SECONDS = 0.25  # at least, between two starts
WAITING_LOG_SECONDS = 5.0
RECONNECT_SECONDS = 60.0
PATIENCE_SECONDS = 10.0  # until readers are ended, if the stream cannot be followed
BEGINNINGS_AT_ONCE = 32  # consumers that are made at once; a thousand would not be answered in time
MANY_CONSUMERS = 100
SLOW_HEARTBEAT_SECONDS = 5.0  # a thousand consumers at 0.5 s cost a tenth of a core

log = logging.getLogger(__name__)


class FeedParts:
    """The parts that all feeds of a process share."""

    def __init__(self, connection: Connection, stores: TenantStores, history: History) -> None:
        self.connection = connection
        self.stores = stores
        self.history = history
        self.wakeups = Wakeups()
        self.beginnings = asyncio.Semaphore(BEGINNINGS_AT_ONCE)
        self.waiting_lines = LogThrottle(WAITING_LOG_SECONDS, asyncio.get_running_loop().time)
        self.consumers = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[float]:
        """Count a consumer, and yield the seconds between its heartbeats."""
        self.consumers += 1
        try:
            yield HEARTBEAT_SECONDS if self.consumers <= MANY_CONSUMERS else SLOW_HEARTBEAT_SECONDS
        finally:
            self.consumers -= 1


class TenantFeed:
    """Follows a tenant's stream for the readers of this process, while `run()` runs."""

    def __init__(self, parts: FeedParts, store: TenantStore, ring: Ring) -> None:
        self.fanout = Fanout(ring)
        self._parts = parts
        self._store = store
        self._connection = parts.connection
        self._loop = asyncio.get_running_loop()
        self._consumer: OrderedConsumer | None = None
        self._ready = asyncio.Event()
        self._why_not = ""
        self._openers = 0
        self._read_at = self._loop.time()
        # This timer runs while the stream is not followed.
        self._patience: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def open(self, principal: Principal, filters: Filters, since: str | None) -> AsyncIterator[Reader]:
        """Yield a reader that begins now, or after a position. An unreadable position is a gap.

        Raises `Unavailable` while the stream cannot be followed.
        """
        # Count it before the wait, or the feed could end as idle while this reader waits for it.
        self._openers += 1
        try:
            await self._wait_ready()
            reader = self._reader(principal, filters, since)
            self.fanout.add(reader)
            try:
                yield reader
            finally:
                self.fanout.remove(reader)
                reader.let_go()
        finally:
            self._openers -= 1
            self._read_at = self._loop.time()

    def end_readers(self, error: BridgeError) -> None:
        """End every reader with this error."""
        for reader in self.fanout.listeners:
            reader.end(error)

    def begin_anew(self) -> None:
        """Start another consumer at the end of the ring."""
        if self._consumer is not None:
            self._consumer.end()

    async def run(self, linger_seconds: float) -> None:
        """Follow the stream through restarts of the server, until there has been no reader for `linger_seconds`."""
        while not self._is_idle(linger_seconds):
            next_at = self._loop.time() + RETRY_SECONDS
            try:
                await self._connection.wait_connected(RECONNECT_SECONDS)
                await self._follow(linger_seconds)
            except (BridgeError, jetstream.JetStreamError, nats.errors.Error) as exc:
                self._why_not = exc.message if isinstance(exc, BridgeError) else ""
                self._log_waiting(str(exc))
            # A consumer may break as soon as it is made.
            await asyncio.sleep(next_at - self._loop.time())
        if self._patience is not None:
            self._patience.cancel()

    async def _wait_ready(self) -> None:
        """Wait until the stream is followed."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._ready.wait()
        except TimeoutError as exc:
            raise Unavailable(self._why_not or "events cannot be read just now; try again in a moment") from exc

    def _reader(self, principal: Principal, filters: Filters, since: str | None) -> Reader:
        """Return a reader that begins now, or after its own position."""
        end = self.fanout.ring.end
        position = parse_position(since) if since else end
        gap = None if position else unknown(end)
        cursor = Cursor(principal, filters, position or end, gap)
        return Reader(cursor, self.fanout, self._parts.history, self._parts.wakeups)

    # --- the stream ---

    async def _follow(self, linger_seconds: float) -> None:
        """Follow the stream from the end of the ring, until the consumer breaks or there is no reader for a while."""
        order = ConsumerOrder()
        with self._parts.counted() as heartbeat_seconds:
            self._consumer = consumer = OrderedConsumer(
                self._connection, self._store.stream, order, self._take, heartbeat_seconds=heartbeat_seconds
            )
            async with contextlib.AsyncExitStack() as stack:
                # After a restart of NATS the feeds of all tenants begin at once, so few at a time may ask.
                async with self._parts.beginnings:
                    await self._begin()
                    first = self.fanout.ring.last + 1
                    delivery = consumer.deliver(ALL_NEWS, deliver_policy="by_start_sequence", opt_start_seq=first)
                    await stack.enter_async_context(delivery)
                stack.enter_context(self._following())
                while not await consumer.wait(heartbeat_seconds):
                    self.fanout.count_held()
                    if self._is_idle(linger_seconds):
                        return
        log.info("following events of %s anew: %s", self._store.tenant, order.broken or "NATS is back")

    async def _begin(self) -> None:
        """Go on in the present stream. If there is none, let a registry make it."""
        info = await jetstream.stream_info(self._connection, self._store.stream)
        if info is None:
            # NATS came back empty, or somebody has deleted the stream: what we know of it is wrong.
            self._parts.stores.forget(self._store.stream)
            await self._parts.stores.ensure(self._store)
            info = await jetstream.stream_info(self._connection, self._store.stream)
        if info is None:
            raise Unavailable("the stream of events is not there yet; try again in a moment")
        self.fanout.begin(info)

    @contextlib.contextmanager
    def _following(self) -> Iterator[None]:
        """Admit readers inside the block. After it admit none, and after ten seconds end the remaining ones."""
        if self._patience is not None:
            self._patience.cancel()
        self._ready.set()
        try:
            yield
        finally:
            # A break of NATS is often over in a second, so present readers may stay for a while.
            self._ready.clear()
            self._patience = self._loop.call_later(PATIENCE_SECONDS, self._send_away)

    def _send_away(self) -> None:
        if self.fanout.listeners:
            log.warning("ending readers of events of %s, because the stream cannot be followed", self._store.tenant)
        self.end_readers(Unavailable("events cannot be read just now; come back with the last id"))

    def _take(self, msg: Msg, place: ConsumerPlace) -> None:
        position = Position(self.fanout.ring.epoch, place.stream_sequence)
        self.fanout.deliver(position.sequence, read_message(msg.subject, position, msg.data))

    def _is_idle(self, linger_seconds: float) -> bool:
        """Tell whether there has been no reader for a while."""
        return not self._openers and self._loop.time() - self._read_at > linger_seconds

    def _log_waiting(self, why: str) -> None:
        if self._parts.waiting_lines.due():
            log.info("waiting for the events of %s: %s", self._store.tenant, why)
