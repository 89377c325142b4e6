"""An ordered push consumer of our own: a stream's messages in order, until one may have been missed.

nats-py's ordered consumer takes 10 to 20 seconds to notice a restart of the server. Ours ends at every sign that a
message may be missing: a gap in the consumer's sequence, three missed heartbeats, a stream sequence that goes
backwards, or a reconnect. Its owner then makes the next consumer, from the last sequence that it has handled.
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
    """A delivered message's sequence in the stream, its sequence in the consumer, and the number of messages behind."""

    stream_sequence: int
    consumer_sequence: int
    pending: int


class ConsumerOrder:
    """Checks that no message of one consumer is missing. `broken` names the first fault. Sans-I/O."""

    def __init__(self) -> None:
        self.broken: str | None = None
        self.delivered = 0
        self._last_stream_sequence = 0

    def accept(self, place: ConsumerPlace) -> bool:
        """Return whether the message is the next one. If not, the order is `broken`."""
        if place.consumer_sequence != self.delivered + 1:
            self.broken = "a message was missed"
        elif place.stream_sequence <= self._last_stream_sequence:
            self.broken = "the stream went backwards"
        if self.broken:
            return False
        self.delivered, self._last_stream_sequence = place.consumer_sequence, place.stream_sequence
        return True

    def heartbeat(self, last_consumer_sequence: int, *, idle: bool) -> None:
        """Compare with the last sequence that the server has sent, which shows a loss that no later message reveals.

        `idle` is false if the server has more to send and waits for flow control.
        """
        if last_consumer_sequence > self.delivered:
            self.broken = "a message was missed"


class OrderedConsumer:
    """One consumer. `take` gets each message, in order. `noted` is called after each message and each heartbeat."""

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
        """Take no more messages, and let `wait()` return."""
        self._ended.set()

    @contextlib.asynccontextmanager
    async def deliver(self, subject: str, **config: Any) -> AsyncIterator[int]:
        """Create the consumer for `subject`, and yield the number of messages that it will deliver at once.

        `config` is JetStream's consumer configuration, above all `deliver_policy`. The server removes the consumer
        five seconds after this ends. Raises as `jetstream.request()` does.
        """
        inbox = self._connection.new_inbox()
        self._heard_at = asyncio.get_running_loop().time()
        # Subscribe first: the server sends as soon as the consumer exists.
        subscription = await self._connection.subscribe(inbox, self._on_message)
        try:
            yield await self._create(inbox, subject, config)
        finally:
            self.end()
            with contextlib.suppress(nats.errors.Error):
                # The subscription has gone with the connection.
                await subscription.unsubscribe()

    async def wait(self, seconds: float) -> bool:
        """Wait for `seconds` or a heartbeat at most. Return whether the consumer has ended: a fault, or `end()`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, self._heartbeat_seconds)):
                await self._ended.wait()
        silence = asyncio.get_running_loop().time() - self._heard_at
        # A server that has restarted knows nothing of the consumer and sends no error. Only the silence shows it.
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
            # A message after a gap must not be taken: its reader has begun to read again from before the gap.
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
        """Answer flow control, which comes as a message or in the heartbeat of a stalled consumer; check heartbeats."""
        # If the server's question was lost, the consumer stalls. Its heartbeats then repeat the subject to answer.
        waiting = reply or headers.get("Nats-Consumer-Stalled")
        if waiting:
            with contextlib.suppress(Unavailable):
                # The consumer ends with the connection.
                self._connection.publish_now(waiting, b"")
        if "Nats-Last-Consumer" in headers:
            self._order.heartbeat(int(headers["Nats-Last-Consumer"]), idle=not waiting)


def parse_place(reply: str) -> ConsumerPlace:
    """Read `$JS.ACK.[domain.account.]stream.consumer.deliveries.stream_seq.consumer_seq.time.pending` (ADR-15)."""
    tokens = reply.split(".")
    first = 5 if len(tokens) == 9 else 7
    return ConsumerPlace(int(tokens[first]), int(tokens[first + 1]), int(tokens[first + 3]))
