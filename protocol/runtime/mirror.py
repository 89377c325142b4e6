"""A mirror of the clients bucket: a full snapshot, then every change, in this process's memory.

An ordered push consumer of our own, because the library's KV watch stays blind for 10 to 20 seconds after a restart of
the server and loses expiries. Whatever may mean that something was missed (a gap in the consumer's sequence, three
missed heartbeats, a stream that went backwards, a reconnect, and 60 seconds in any case) starts a new listing; what is
known stays until that is complete.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import NamedTuple

import msgspec
import nats.errors
from nats.aio.msg import Msg

from protocol import subjects
from protocol.discovery import Client
from protocol.errors import BridgeError, Unavailable
from protocol.runtime import jetstream
from protocol.runtime.nats import Connection
from protocol.runtime.replica import Entry, Listener, Replica

STREAM = f"KV_{subjects.CLIENTS_BUCKET}"
KEY_PREFIX = f"$KV.{subjects.CLIENTS_BUCKET}."
HEARTBEAT_SECONDS = 0.5
MISSED_HEARTBEATS = 3
RELIST_SECONDS = 60.0
RETRY_SECONDS = 0.25
WAITING_LOG_SECONDS = 5.0
RECONNECT_SECONDS = 60.0
INACTIVE_SECONDS = 5
UNHURRIED_BITS_PER_SECOND = 256_000_000  # a listing at full speed holds up the replies that share the connection
_NANOSECONDS = 1_000_000_000
_CONTROL = "100"  # the status of heartbeats and flow control (ADR-15)

log = logging.getLogger(__name__)


class _Created(msgspec.Struct, frozen=True):
    num_pending: int = 0


_created = msgspec.json.Decoder(_Created)


class Place(NamedTuple):
    """Where a delivered message stands: in the stream, in the consumer's order, and how many are still to come."""

    stream_sequence: int
    consumer_sequence: int
    pending: int


class Listing:
    """What one consumer has delivered so far, and whether all of it came. Sans-I/O."""

    def __init__(self) -> None:
        self.broken: str | None = None
        self.complete = False
        self._delivered = 0
        self._last_stream_sequence = 0
        self._expected: int | None = None

    def expect(self, pending: int) -> None:
        """Note how many messages the snapshot has; some may have been delivered before this is known."""
        self._expected = pending
        self.complete = self.complete or self._delivered >= pending

    def accept(self, place: Place) -> bool:
        """Return whether the message is the next one; note that the listing is broken where it is not."""
        if place.consumer_sequence != self._delivered + 1:
            self.broken = "a message was missed"
        elif place.stream_sequence <= self._last_stream_sequence:
            self.broken = "the stream went backwards"
        if self.broken:
            return False
        self._delivered, self._last_stream_sequence = place.consumer_sequence, place.stream_sequence
        return True

    def advance(self, place: Place) -> None:
        """Note that an accepted message has been taken over."""
        reached = self._expected is not None and self._delivered >= self._expected
        self.complete = self.complete or reached or place.pending == 0

    def heartbeat(self, last_consumer_sequence: int, *, idle: bool) -> None:
        """Note what the server has delivered in all; messages lost at the end show only here.

        An idle server has nothing left to deliver, whatever it announced; one that waits for flow control has.
        """
        if last_consumer_sequence > self._delivered:
            self.broken = "a message was missed"
        elif idle and self._expected is not None:
            self.complete = True


class Mirror:
    """The clients bucket in memory. Start `run()` as a task; `filled` is set after the first snapshot, for good."""

    def __init__(self, connection: Connection, *listeners: Listener) -> None:
        self.filled = asyncio.Event()
        self._connection = connection
        self._replica = Replica(*listeners)
        self._listing = Listing()
        self._heard_at = 0.0
        self._unhurried = False
        self._broken = asyncio.Event()
        self._log_next = 0.0
        connection.on_reconnect(self._broken.set)

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
        while True:
            try:
                await self._connection.wait_connected(RECONNECT_SECONDS)
                await self._follow()
            except (BridgeError, jetstream.JetStreamError, nats.errors.Error) as exc:
                self._log_waiting(str(exc))
                await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self) -> None:
        """List the bucket and follow it until it must be listed anew."""
        self._broken.clear()
        info = await jetstream.stream_info(self._connection, STREAM)
        if info is None:
            raise Unavailable("the bucket does not exist yet; the registry makes it")
        unhurried, self._unhurried = self._unhurried, False
        self._replica.begin(info.created, info.state.last_seq)
        self._listing = listing = Listing()
        async with self._consumer(listing, UNHURRIED_BITS_PER_SECOND if unhurried else 0):
            await self._watch(listing)
        self._unhurried = not self._broken.is_set() and listing.broken is None
        if listing.broken:
            log.info("listing the clients anew: %s", listing.broken)

    async def _watch(self, listing: Listing) -> None:
        loop = asyncio.get_running_loop()
        relist_at = loop.time() + RELIST_SECONDS
        while (loop.time() < relist_at or not listing.complete) and not self._broken.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._broken.wait()
            if loop.time() - self._heard_at > MISSED_HEARTBEATS * HEARTBEAT_SECONDS:
                listing.broken = "the server has fallen silent"
                return

    @contextlib.asynccontextmanager
    async def _consumer(self, listing: Listing, bits_per_second: int) -> AsyncIterator[None]:
        """Have the server push the bucket to an inbox of ours; it drops the consumer soon after nobody listens."""
        name, inbox = f"mirror-{secrets.token_hex(8)}", self._connection.new_inbox()
        self._heard_at = asyncio.get_running_loop().time()
        subscription = await self._connection.subscribe(inbox, partial(self._take, listing))
        try:
            listing.expect(await self._create_consumer(name, inbox, bits_per_second))
            self._end_listing(listing)
            yield
        finally:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _create_consumer(self, name: str, inbox: str, bits_per_second: int) -> int:
        """Return how many messages the snapshot has; 0 bits a second are no limit."""
        subject = f"{KEY_PREFIX}>"
        config = {
            "name": name,
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "filter_subject": subject,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "flow_control": True,
            "idle_heartbeat": int(HEARTBEAT_SECONDS * _NANOSECONDS),
            "inactive_threshold": INACTIVE_SECONDS * _NANOSECONDS,
            "rate_limit_bps": bits_per_second,
        }
        operation = f"CONSUMER.CREATE.{STREAM}.{name}.{subject}"
        created = await jetstream.request(
            self._connection, operation, _created, stream_name=STREAM, config=config, action="create"
        )
        return created.num_pending

    async def _take(self, listing: Listing, msg: Msg) -> None:
        if listing is not self._listing or listing.broken:
            return
        self._heard_at = asyncio.get_running_loop().time()
        headers = msg.headers or {}
        if headers.get("Status") == _CONTROL:
            self._control(listing, msg.reply, headers)
        else:
            self._take_entry(listing, msg, headers)
        self._end_listing(listing)

    def _take_entry(self, listing: Listing, msg: Msg, headers: Mapping[str, str]) -> None:
        place = parse_place(msg.reply)
        if not listing.accept(place):
            return
        key = msg.subject.removeprefix(KEY_PREFIX)
        if jetstream.KV_OPERATION_HEADER in headers or jetstream.MARKER_HEADER in headers:
            self._replica.remove(key, place.stream_sequence)
        else:
            self._replica.put(key, place.stream_sequence, msg.data)
        listing.advance(place)

    def _control(self, listing: Listing, reply: str, headers: Mapping[str, str]) -> None:
        """Answer flow control, by its own message or by the heartbeat of a stalled consumer; read the heartbeat."""
        waiting = reply or headers.get("Nats-Consumer-Stalled")
        if waiting:
            with contextlib.suppress(Unavailable):
                self._connection.publish_now(waiting, b"")
        if "Nats-Last-Consumer" in headers:
            listing.heartbeat(int(headers["Nats-Last-Consumer"]), idle=not waiting)

    def _end_listing(self, listing: Listing) -> None:
        if listing.broken:
            self._broken.set()
        elif listing.complete:
            self._replica.complete()
            self.filled.set()

    def _log_waiting(self, why: str) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._log_next:
            self._log_next = now + WAITING_LOG_SECONDS
            log.info("waiting for the list of clients: %s", why)


def parse_place(reply: str) -> Place:
    """Read `$JS.ACK.[domain.account.]stream.consumer.deliveries.stream_seq.consumer_seq.time.pending` (ADR-15)."""
    tokens = reply.split(".")
    first = 5 if len(tokens) == 9 else 7
    return Place(int(tokens[first]), int(tokens[first + 1]), int(tokens[first + 3]))
