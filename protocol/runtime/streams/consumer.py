"""An ordered push consumer of our own: a stream's messages in their order, until one may have been missed.

The library's own stay blind for 10 to 20 seconds after a restart of the server. Here whatever may mean that a message
was missed (a gap in the consumer's sequence, three missed heartbeats, a stream that went backwards, a reconnect) ends
the consumer's life, and who follows the stream makes the next one, from where it knows to go on.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import nats.errors
from nats.aio.msg import Msg

from protocol.errors import Unavailable
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams import jetstream

HEARTBEAT_SECONDS = 0.5
MISSED_HEARTBEATS = 3
INACTIVE_SECONDS = 5
_NANOSECONDS = 1_000_000_000
_CONTROL = "100"  # the status of heartbeats and flow control (ADR-15)


class _Created(msgspec.Struct, frozen=True):
    num_pending: int = 0


_created = msgspec.json.Decoder(_Created)


class ConsumerPlace(NamedTuple):
    """Where a delivered message stands: in the stream, in the consumer's order, and how many are still to come."""

    stream_sequence: int
    consumer_sequence: int
    pending: int


class ConsumerOrder:
    """What one consumer has delivered so far, and whether all of it came. Sans-I/O."""

    def __init__(self) -> None:
        self.broken: str | None = None
        self.delivered = 0
        self._last_stream_sequence = 0

    def accept(self, place: ConsumerPlace) -> bool:
        """Return whether the message is the next one; note that the order is broken where it is not."""
        if place.consumer_sequence != self.delivered + 1:
            self.broken = "a message was missed"
        elif place.stream_sequence <= self._last_stream_sequence:
            self.broken = "the stream went backwards"
        if self.broken:
            return False
        self.delivered, self._last_stream_sequence = place.consumer_sequence, place.stream_sequence
        return True

    def heartbeat(self, last_consumer_sequence: int, *, idle: bool) -> None:
        """Note what the server has delivered in all; messages lost at the end show only here.

        An idle server has nothing left to deliver; one that waits for flow control has.
        """
        if last_consumer_sequence > self.delivered:
            self.broken = "a message was missed"


class OrderedConsumer:
    """One consumer's life. `take` gets each message in its order; `noted` is called after each and each heartbeat."""

    def __init__(
        self,
        connection: Connection,
        stream: str,
        order: ConsumerOrder,
        take: Callable[[Msg, ConsumerPlace], None],
        noted: Callable[[], None] = lambda: None,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._order = order
        self._take = take
        self._noted = noted
        self._heartbeat_seconds = heartbeat_seconds
        self._heard_at = 0.0
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Take nothing more; `wait()` returns."""
        self._ended.set()

    @contextlib.asynccontextmanager
    async def deliver(self, subject: str, **config: Any) -> AsyncIterator[int]:
        """Have the server push what matches `subject` to an inbox of ours, and give how many messages are there yet.

        `config` is JetStream's, `deliver_policy` above all. The server drops the consumer soon after nobody listens.
        Raises as `jetstream.request()` does.
        """
        inbox = self._connection.new_inbox()
        self._heard_at = asyncio.get_running_loop().time()
        subscription = await self._connection.subscribe(inbox, self._on_message)
        try:
            yield await self._create(inbox, subject, config)
        finally:
            self.end()
            with contextlib.suppress(nats.errors.Error):  # gone with the connection
                await subscription.unsubscribe()

    async def wait(self, seconds: float) -> bool:
        """Wait for at most so long; return whether the consumer's life has ended: its order is broken, or `end()`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, self._heartbeat_seconds)):
                await self._ended.wait()
        silence = asyncio.get_running_loop().time() - self._heard_at
        if not self._ended.is_set() and silence > MISSED_HEARTBEATS * self._heartbeat_seconds:
            self._order.broken = "the server has fallen silent"
            self.end()
        return self._ended.is_set()

    async def _create(self, inbox: str, subject: str, config: dict[str, Any]) -> int:
        name = f"ordered-{secrets.token_hex(8)}"
        common = {
            "name": name,
            "deliver_subject": inbox,
            "filter_subject": subject,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "flow_control": True,
            "idle_heartbeat": int(self._heartbeat_seconds * _NANOSECONDS),
            "inactive_threshold": INACTIVE_SECONDS * _NANOSECONDS,
        }
        operation = f"CONSUMER.CREATE.{self._stream}.{name}.{subject}"
        created = await jetstream.request(
            self._connection, operation, _created, stream_name=self._stream, config=common | config, action="create"
        )
        return created.num_pending

    async def _on_message(self, msg: Msg) -> None:
        if self._ended.is_set():
            return
        self._heard_at = asyncio.get_running_loop().time()
        headers = msg.headers or {}
        status = headers.get("Status")
        if status == _CONTROL:
            self._control(msg.reply, headers)
        elif status is not None:
            self._order.broken = f"the server ended the consumer with {status}"
        else:
            place = parse_place(msg.reply)
            if self._order.accept(place):
                self._take(msg, place)
        if self._order.broken:
            self.end()
        else:
            self._noted()

    def _control(self, reply: str, headers: Mapping[str, str]) -> None:
        """Answer flow control, by its own message or by the heartbeat of a stalled consumer; read the heartbeat."""
        waiting = reply or headers.get("Nats-Consumer-Stalled")
        if waiting:
            with contextlib.suppress(Unavailable):
                self._connection.publish_now(waiting, b"")
        if "Nats-Last-Consumer" in headers:
            self._order.heartbeat(int(headers["Nats-Last-Consumer"]), idle=not waiting)


def parse_place(reply: str) -> ConsumerPlace:
    """Read `$JS.ACK.[domain.account.]stream.consumer.deliveries.stream_seq.consumer_seq.time.pending` (ADR-15)."""
    tokens = reply.split(".")
    first = 5 if len(tokens) == 9 else 7
    return ConsumerPlace(int(tokens[first]), int(tokens[first + 1]), int(tokens[first + 3]))
