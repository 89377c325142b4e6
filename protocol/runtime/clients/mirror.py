"""A mirror of the clients bucket: a full snapshot, then every change, in this process's memory.

It uses our own ordered consumer, because the library's KV watch misses expiries. A new listing starts when a consumer
ends, and every 60 seconds. The known records stay until the listing is complete.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping

import nats.errors
from nats.aio.msg import Msg

from protocol import subjects
from protocol.discovery import Client
from protocol.errors import BridgeError, Unavailable
from protocol.reports import REASON_HEADER, is_lost
from protocol.runtime.clients.lost import LostClients
from protocol.runtime.clients.replica import Listener, Replica, ReplicaEntry
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.consumer import HEARTBEAT_SECONDS, ConsumerOrder, ConsumerPlace, OrderedConsumer

STREAM = f"KV_{subjects.CLIENTS_BUCKET}"
KEY_PREFIX = f"$KV.{subjects.CLIENTS_BUCKET}."
RELIST_SECONDS = 60.0
RETRY_SECONDS = 0.25  # at least, between two starts
WAITING_LOG_SECONDS = 5.0
RECONNECT_SECONDS = 60.0
UNHURRIED_BITS_PER_SECOND = 256_000_000  # a listing at full speed would delay the replies on the same connection

log = logging.getLogger(__name__)


class Listing(ConsumerOrder):
    """The messages that one consumer has delivered, and whether the snapshot is complete. Sans-I/O."""

    def __init__(self) -> None:
        super().__init__()
        self.complete = False
        self._expected: int | None = None

    def expect(self, pending: int) -> None:
        """Note the number of messages in the snapshot. Some may have been delivered before it is known."""
        self._expected = pending
        self.complete = self.complete or self.delivered >= pending

    def advance(self, place: ConsumerPlace) -> None:
        """Note that an accepted message has been applied."""
        reached = self._expected is not None and self.delivered >= self._expected
        self.complete = self.complete or reached or place.pending == 0

    def heartbeat(self, last_consumer_sequence: int, *, idle: bool) -> None:
        """Note the server's own count of deliveries. An idle server has delivered everything that it announced."""
        super().heartbeat(last_consumer_sequence, idle=idle)
        if self.broken is None and idle and self._expected is not None:
            self.complete = True


class Mirror:
    """The clients bucket in memory. Start `run()` as a task; `filled` is set after the first snapshot, for good.

    `lost` has the clients that were lost a moment ago and are expected back.
    """

    def __init__(
        self,
        connection: Connection,
        *listeners: Listener,
        relist_seconds: float = RELIST_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self.filled = asyncio.Event()
        self.lost = LostClients()
        self._connection = connection
        self._relist_seconds = relist_seconds
        self._retry_seconds = retry_seconds
        self._replica = Replica(*listeners)
        self._listing = Listing()
        self._consumer: OrderedConsumer | None = None
        self._unhurried = False
        self._clock = asyncio.get_running_loop().time
        self._waiting_lines = LogThrottle(WAITING_LOG_SECONDS, self._clock)
        connection.on_reconnect(self._begin_anew)

    @property
    def revision(self) -> int:
        """The bucket's revision that this mirror has reached. A new bucket begins again."""
        return self._replica.revision

    def clients(self, tenant: str) -> Mapping[str, Client]:
        """Return a tenant's clients by their ids."""
        return self._replica.clients(tenant)

    def tenants(self) -> Iterable[str]:
        """Return the tenants that have clients."""
        return self._replica.tenants()

    def get(self, tenant: str, client_id: str) -> Client | None:
        """Return a client, or None."""
        return self._replica.clients(tenant).get(client_id)

    def entry(self, key: str) -> ReplicaEntry | None:
        """Return a key's entry with its revision, or None."""
        return self._replica.entry(key)

    async def run(self) -> None:
        """Follow the bucket for ever, through restarts of the server and a bucket that does not exist yet."""
        loop = asyncio.get_running_loop()
        while True:
            next_at = loop.time() + self._retry_seconds
            try:
                await self._connection.wait_connected(RECONNECT_SECONDS)
                await self._follow()
            except (BridgeError, jetstream.JetStreamError, nats.errors.Error) as exc:
                self._log_waiting(str(exc))
            # A consumer may break as soon as it is made.
            await asyncio.sleep(next_at - loop.time())

    async def _follow(self) -> None:
        """List the bucket, and follow it until the next listing is due."""
        self._listing = listing = Listing()
        self._consumer = consumer = OrderedConsumer(
            self._connection, STREAM, listing, self._take, self._end_where_complete
        )
        info = await jetstream.stream_info(self._connection, STREAM)
        if info is None:
            raise Unavailable("the bucket does not exist yet; the registry makes it")
        # Only a regular listing may be slow. After a break the list may be wrong, so it is read at full speed.
        unhurried, self._unhurried = self._unhurried, False
        self._replica.begin(info.created, info.state.last_seq)
        # 0 is no limit.
        pace = UNHURRIED_BITS_PER_SECOND if unhurried else 0
        async with consumer.deliver(
            f"{KEY_PREFIX}>", deliver_policy="last_per_subject", rate_limit_bps=pace
        ) as pending:
            # All may have been delivered before the number was known, or there was nothing to deliver.
            listing.expect(pending)
            self._end_where_complete()
            self._unhurried = await self._outlived(consumer, listing)
        if listing.broken:
            log.info("listing the clients anew: %s", listing.broken)

    async def _outlived(self, consumer: OrderedConsumer, listing: Listing) -> bool:
        """Return whether the consumer lived until the next regular listing."""
        relist_at = self._clock() + self._relist_seconds
        while self._clock() < relist_at or not listing.complete:
            self.lost.expire(self._clock())
            if await consumer.wait(HEARTBEAT_SECONDS):
                return False
        return True

    def _take(self, msg: Msg, place: ConsumerPlace) -> None:
        headers, key = msg.headers or {}, msg.subject.removeprefix(KEY_PREFIX)
        if jetstream.KV_OPERATION_HEADER in headers or jetstream.MARKER_HEADER in headers:
            gone = self._replica.remove(key, place.stream_sequence)
            if gone is not None and is_lost(headers.get(REASON_HEADER)):
                self.lost.add(gone, self._clock())
        else:
            self._replica.put(key, place.stream_sequence, msg.data)
            # A lost client is back. Nearly always none is lost, so the key is rarely parsed.
            address = subjects.parse_key(key) if self.lost else None
            if address is not None:
                self.lost.forget(address)
        self._listing.advance(place)

    def _end_where_complete(self) -> None:
        if self._listing.complete:
            self._replica.complete()
            self.filled.set()

    def _begin_anew(self) -> None:
        if self._consumer is not None:
            self._consumer.end()

    def _log_waiting(self, why: str) -> None:
        if self._waiting_lines.due():
            log.info("waiting for the list of clients: %s", why)
