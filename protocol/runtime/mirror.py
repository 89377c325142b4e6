"""A mirror of the clients bucket: a full snapshot, then every change, in this process's memory.

By an ordered consumer of our own, for the library's KV watch loses expiries besides. The end of one consumer's life,
and 60 seconds in any case, start a new listing; what is known stays until that is complete.
"""

import asyncio
import logging
from collections.abc import Mapping

import nats.errors
from nats.aio.msg import Msg

from protocol import subjects
from protocol.discovery import Client
from protocol.errors import BridgeError, Unavailable
from protocol.runtime import jetstream
from protocol.runtime.nats import Connection
from protocol.runtime.ordered import HEARTBEAT_SECONDS, Order, OrderedConsumer, Place
from protocol.runtime.replica import Entry, Listener, Replica

STREAM = f"KV_{subjects.CLIENTS_BUCKET}"
KEY_PREFIX = f"$KV.{subjects.CLIENTS_BUCKET}."
RELIST_SECONDS = 60.0
RETRY_SECONDS = 0.25  # between two beginnings, at least
WAITING_LOG_SECONDS = 5.0
RECONNECT_SECONDS = 60.0
UNHURRIED_BITS_PER_SECOND = 256_000_000  # a listing at full speed holds up the replies that share the connection

log = logging.getLogger(__name__)


class Listing(Order):
    """What one consumer has delivered so far, and whether all of the snapshot came. Sans-I/O."""

    def __init__(self) -> None:
        super().__init__()
        self.complete = False
        self._expected: int | None = None

    def expect(self, pending: int) -> None:
        """Note how many messages the snapshot has; some may have been delivered before this is known."""
        self._expected = pending
        self.complete = self.complete or self.delivered >= pending

    def advance(self, place: Place) -> None:
        """Note that an accepted message has been taken over."""
        reached = self._expected is not None and self.delivered >= self._expected
        self.complete = self.complete or reached or place.pending == 0

    def heartbeat(self, last_consumer_sequence: int, *, idle: bool) -> None:
        """Note what the server has delivered in all; once it is idle, nothing is left of what it announced."""
        super().heartbeat(last_consumer_sequence, idle=idle)
        if self.broken is None and idle and self._expected is not None:
            self.complete = True


class Mirror:
    """The clients bucket in memory. Start `run()` as a task; `filled` is set after the first snapshot, for good."""

    def __init__(self, connection: Connection, *listeners: Listener) -> None:
        self.filled = asyncio.Event()
        self._connection = connection
        self._replica = Replica(*listeners)
        self._listing = Listing()
        self._consumer: OrderedConsumer | None = None
        self._unhurried = False
        self._log_next = 0.0
        connection.on_reconnect(self._begin_anew)

    @property
    def revision(self) -> int:
        """The bucket's revision that this mirror has reached; it begins anew with a new bucket."""
        return self._replica.revision

    def clients(self, tenant: str) -> Mapping[str, Client]:
        """Return a tenant's clients by their ids."""
        return self._replica.clients(tenant)

    def get(self, tenant: str, client_id: str) -> Client | None:
        """Return a client, or None."""
        return self._replica.clients(tenant).get(client_id)

    def entry(self, key: str) -> Entry | None:
        """Return a key's entry with its revision, or None."""
        return self._replica.entry(key)

    async def run(self) -> None:
        """Follow the bucket for ever, through restarts of the server and a bucket that does not exist yet."""
        loop = asyncio.get_running_loop()
        while True:
            next_at = loop.time() + RETRY_SECONDS
            try:
                await self._connection.wait_connected(RECONNECT_SECONDS)
                await self._follow()
            except (BridgeError, jetstream.JetStreamError, nats.errors.Error) as exc:
                self._log_waiting(str(exc))
            await asyncio.sleep(next_at - loop.time())  # a consumer may break as soon as it is made

    async def _follow(self) -> None:
        """List the bucket and follow it until it must be listed anew."""
        self._listing = listing = Listing()
        self._consumer = consumer = OrderedConsumer(
            self._connection, STREAM, listing, self._take, self._end_where_complete
        )
        info = await jetstream.stream_info(self._connection, STREAM)
        if info is None:
            raise Unavailable("the bucket does not exist yet; the registry makes it")
        unhurried, self._unhurried = self._unhurried, False
        self._replica.begin(info.created, info.state.last_seq)
        pace = UNHURRIED_BITS_PER_SECOND if unhurried else 0  # 0 is no limit
        async with consumer.deliver(
            f"{KEY_PREFIX}>", deliver_policy="last_per_subject", rate_limit_bps=pace
        ) as pending:
            listing.expect(pending)
            self._end_where_complete()
            self._unhurried = await self._outlived(consumer, listing)
        if listing.broken:
            log.info("listing the clients anew: %s", listing.broken)

    async def _outlived(self, consumer: OrderedConsumer, listing: Listing) -> bool:
        """Return whether the consumer lived until it was time to list anew in any case."""
        loop = asyncio.get_running_loop()
        relist_at = loop.time() + RELIST_SECONDS
        while loop.time() < relist_at or not listing.complete:
            if await consumer.wait(HEARTBEAT_SECONDS):
                return False
        return True

    def _take(self, msg: Msg, place: Place) -> None:
        headers, key = msg.headers or {}, msg.subject.removeprefix(KEY_PREFIX)
        if jetstream.KV_OPERATION_HEADER in headers or jetstream.MARKER_HEADER in headers:
            self._replica.remove(key, place.stream_sequence)
        else:
            self._replica.put(key, place.stream_sequence, msg.data)
        self._listing.advance(place)

    def _end_where_complete(self) -> None:
        if self._listing.complete:
            self._replica.complete()
            self.filled.set()

    def _begin_anew(self) -> None:
        if self._consumer is not None:
            self._consumer.end()

    def _log_waiting(self, why: str) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._log_next:
            self._log_next = now + WAITING_LOG_SECONDS
            log.info("waiting for the list of clients: %s", why)
