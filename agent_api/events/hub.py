"""The events of all tenants in this process: one consumer of the stream, for as long as somebody reads.

What it delivers goes into the ring of recent messages; readers whose message it is are woken and read it there. After a
break, be it of NATS or of our connection, it goes on from where the ring ends; what the stream has lost meanwhile is a
gap for every reader. Where it cannot go on for some seconds, readers are sent away, for silence would look like peace.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import nats.errors
from nats.aio.msg import Msg

from agent_api.events.cursor import Cursor
from agent_api.events.filters import Filters
from agent_api.events.flow import Flow
from agent_api.events.gaps import unknown
from agent_api.events.history import History
from agent_api.events.messages import read_message
from agent_api.events.positions import Position, parse_position
from agent_api.events.reader import Reader
from agent_api.events.ring import Ring
from agent_api.events.turns import Turns
from protocol.access import Principal
from protocol.errors import BridgeError, Overloaded, Unavailable
from protocol.runtime import jetstream
from protocol.runtime.nats import Connection
from protocol.runtime.ordered import HEARTBEAT_SECONDS, Order, OrderedConsumer, Place
from protocol.subjects import ALL_NEWS, EVENTS_STREAM

MAX_READERS = 4000
MAX_READERS_PER_TENANT = 2000
MAX_READERS_PER_PRINCIPAL = 1000
READY_SECONDS = 2.0
LINGER_SECONDS = 60.0  # a reader that comes back finds what it missed in memory
RETRY_SECONDS = 0.25  # between two beginnings, at least
WAITING_LOG_SECONDS = 5.0
RECONNECT_SECONDS = 60.0
PATIENCE_SECONDS = 10.0  # for the stream to be followed again, before readers are sent away

log = logging.getLogger(__name__)
_Whose = tuple[str, str]  # a tenant and a `sub`


class Hub:
    """Follows the stream for all readers of this process. `start()`, and `run()` as a task."""

    def __init__(self, connection: Connection, ring: Ring | None = None) -> None:
        self._flow = Flow(ring or Ring())
        self._history = History(connection)
        self._turns = Turns()
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._consumer: OrderedConsumer | None = None
        self._wanted, self._ready = asyncio.Event(), asyncio.Event()
        self._closed: BridgeError | None = None
        self._read_at = 0.0
        self._of_principal: Counter[_Whose] = Counter()
        self._of_tenant: Counter[str] = Counter()
        self._log_next = 0.0
        self._patience: asyncio.TimerHandle | None = None  # while the stream is not followed, though somebody may read
        connection.on_reconnect(self._begin_anew)

    async def start(self) -> None:
        """Subscribe for what is read of the past."""
        await self._history.start()

    @contextlib.asynccontextmanager
    async def open(self, principal: Principal, filters: Filters, since: str | None = None) -> AsyncIterator[Reader]:
        """Give a reader, from now on or from the position `since`; one that cannot be read is a gap.

        Raises `Overloaded` where there are too many readers, `Unavailable` while the stream cannot be followed, and
        after `close()` what that was given. What is not followed for long ends the reader with `Unavailable`.
        """
        with self._counted((principal.tenant, principal.sub)):
            await self._wait_ready()
            reader = self._reader(principal, filters, since)
            self._flow.add(reader)
            try:
                yield reader
            finally:
                self._flow.remove(reader)
                reader.let_go()

    def close(self, error: BridgeError) -> None:
        """End every reader with this error; new ones are refused with it."""
        self._closed = error
        self._end_readers(error)

    async def run(self) -> None:
        """Follow the stream whenever somebody reads, through restarts of the server; a task for the process's life."""
        while True:
            await self._wanted.wait()
            next_at = self._loop.time() + RETRY_SECONDS
            try:
                await self._connection.wait_connected(RECONNECT_SECONDS)
                await self._follow()
            except (BridgeError, jetstream.JetStreamError, nats.errors.Error) as exc:
                self._log_waiting(str(exc))
            await asyncio.sleep(next_at - self._loop.time())  # a consumer may break as soon as it is made

    # --- readers ---

    @contextlib.contextmanager
    def _counted(self, whose: _Whose) -> Iterator[None]:
        """Count a reader; raise where it would be one too many, or where none is taken any more."""
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
            raise Overloaded("this process has as many readers of events as it takes; try again in a moment")
        if self._of_tenant[whose[0]] >= MAX_READERS_PER_TENANT:
            raise Overloaded(
                "this process has as many readers of events as it takes of your tenant; close some of them"
            )
        if self._of_principal[whose] >= MAX_READERS_PER_PRINCIPAL:
            raise Overloaded("too many readers of events are open for this token's `sub`; close some of them")

    def _end_readers(self, error: BridgeError) -> None:
        for reader in self._flow.listeners:
            reader.end(error)

    def _require_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    async def _wait_ready(self) -> None:
        """Wait until the stream is followed."""
        self._wanted.set()
        self._read_at = self._loop.time()
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._ready.wait()
        except TimeoutError as exc:
            raise Unavailable("events cannot be read just now; try again in a moment") from exc
        self._require_open()

    def _reader(self, principal: Principal, filters: Filters, since: str | None) -> Reader:
        """Return a reader that begins now, or where it says that it was."""
        end = self._flow.ring.end
        position = parse_position(since) if since else end
        gap = None if position else unknown(end)
        return Reader(Cursor(principal, filters, position or end, gap), self._flow, self._history, self._turns)

    # --- the stream ---

    async def _follow(self) -> None:
        """Follow the stream from where the ring ends, until the consumer breaks or nobody has read for a while."""
        order = Order()
        self._consumer = consumer = OrderedConsumer(self._connection, EVENTS_STREAM, order, self._take)
        info = await jetstream.stream_info(self._connection, EVENTS_STREAM)
        if info is None:
            raise Unavailable("the stream of events does not exist yet; the registry makes it")
        self._flow.begin(info)
        first = self._flow.ring.last + 1
        async with consumer.deliver(ALL_NEWS, deliver_policy="by_start_sequence", opt_start_seq=first):
            with self._following():
                while not await consumer.wait(HEARTBEAT_SECONDS):
                    self._flow.count_held()
                    if self._is_idle():
                        self._rest()
                        return
        log.info("following events anew: %s", order.broken or "NATS is back")

    @contextlib.contextmanager
    def _following(self) -> Iterator[None]:
        """Let readers in; afterwards none, and after a while send away those who still read."""
        if self._patience is not None:
            self._patience.cancel()
        self._ready.set()
        try:
            yield
        finally:
            self._ready.clear()
            self._patience = self._loop.call_later(PATIENCE_SECONDS, self._send_away)

    def _send_away(self) -> None:
        if self._flow.listeners:
            log.warning("readers of events are sent away, for the stream cannot be followed")
        self._end_readers(Unavailable("events cannot be read just now; come back with the last id"))

    def _take(self, msg: Msg, place: Place) -> None:
        position = Position(self._flow.ring.epoch, place.stream_sequence)
        self._flow.deliver(position.sequence, read_message(msg.subject, position, msg.data))

    def _is_idle(self) -> bool:
        """Tell whether nobody has read for a while."""
        now = self._loop.time()
        if self._flow.listeners:
            self._read_at = now
        return now - self._read_at > LINGER_SECONDS

    def _rest(self) -> None:
        """Forget everything until somebody reads again."""
        self._wanted.clear()
        self._flow.ring.reset(Position("", 0))

    def _begin_anew(self) -> None:
        if self._consumer is not None:
            self._consumer.end()

    def _log_waiting(self, why: str) -> None:
        now = self._loop.time()
        if now >= self._log_next:
            self._log_next = now + WAITING_LOG_SECONDS
            log.info("waiting for the stream of events: %s", why)
