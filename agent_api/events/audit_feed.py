"""Live audit records. Each follower has an ordered consumer of its own, because administrators are few.

Stored records are read page by page, at the follower's pace. The consumer delivers later ones.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import NamedTuple

import nats.errors
from nats.aio.msg import Msg

from protocol.audit import AuditFilter, read_record
from protocol.errors import BridgeError, Overloaded, Unavailable
from protocol.runtime.commands.audit_history import AuditHistory, after_loss
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams.consumer import HEARTBEAT_SECONDS, ConsumerOrder, ConsumerPlace, OrderedConsumer
from protocol.runtime.streams.jetstream import JetStreamError, StreamInfo
from protocol.runtime.streams.positions import Position, epoch_of
from protocol.runtime.streams.stores import audit_of
from protocol.subjects import RETIRED_AUDIT_STREAM

MAX_FOLLOWERS = 64
MAX_FOLLOWERS_PER_TENANT = 16
MAX_UNREAD = 2000
MAX_UNREAD_BYTES = 4 * 1024 * 1024
PAGE = 256
RETRY_SECONDS = 0.5
PATIENCE_SECONDS = 10.0
LOG_SECONDS = 60.0

log = logging.getLogger(__name__)


class Record(NamedTuple):
    """A wanted record, in its stored form."""

    position: Position
    data: bytes


class Missed(NamedTuple):
    """Records may have been missed. The follower goes on after `position`."""

    position: Position


AuditItem = Record | Missed


class AuditReader:
    """One follower. `next()` returns new records; `close()` makes it raise."""

    def __init__(self, wanted: AuditFilter, position: Position) -> None:
        self.position = position
        self._wanted = wanted
        self._unread: list[AuditItem] = []
        self._unread_bytes = 0
        self._news, self._all_read = asyncio.Event(), asyncio.Event()
        self._ended: BridgeError | None = None

    async def next(self) -> list[AuditItem]:
        """Wait for records and return them. Raises the `BridgeError` that ends this follower."""
        await self._news.wait()
        self._news.clear()
        if self._ended is not None:
            raise self._ended
        items, self._unread, self._unread_bytes = self._unread, [], 0
        self._all_read.set()
        return items

    async def wait_read(self) -> None:
        """Wait until all records so far have been returned."""
        while self._unread:
            self._all_read.clear()
            await self._all_read.wait()

    @property
    def passed(self) -> Position | None:
        """The position to resume from, or None while a record waits to be returned."""
        return None if self._unread or self._ended is not None else self.position

    def end(self, error: BridgeError) -> None:
        """Let `next()` raise this error."""
        self._ended = self._ended or error
        self._news.set()

    def take(self, sequence: int, data: bytes) -> None:
        """Add the record at a sequence. End the follower if it does not read."""
        self.position = Position(self.position.epoch, sequence)
        record = read_record(data)
        if record is not None and self._wanted.wants(record):
            self._add(Record(self.position, data))

    def jump(self, position: Position) -> None:
        """Go on at another position, and report that records may be missing."""
        self.position = position
        self._add(Missed(position))

    def _add(self, item: AuditItem) -> None:
        if len(self._unread) >= MAX_UNREAD or self._unread_bytes >= MAX_UNREAD_BYTES:
            self._unread.clear()
            self.end(Overloaded("you read too slowly; resume from the last id"))
            return
        self._unread.append(item)
        self._unread_bytes += len(item.data) if isinstance(item, Record) else 0
        self._news.set()


class _FollowedStream(NamedTuple):
    """A tenant's stream, narrowed by the follower's filter."""

    tenant: str
    stream: str
    subject: str


class AuditFeed:
    """The followers of audit records at this process. Their consumers run in `tasks`."""

    def __init__(self, connection: Connection, history: AuditHistory, tasks: asyncio.TaskGroup) -> None:
        self._connection = connection
        self._history = history
        self._tasks = tasks
        self._followers: dict[AuditReader, str] = {}
        self._closed: BridgeError | None = None
        self._loop = asyncio.get_running_loop()
        self._warnings = LogThrottle(LOG_SECONDS, self._loop.time)

    @contextlib.asynccontextmanager
    async def open_to_readers(self, goodbye: BridgeError) -> AsyncIterator[None]:
        """On a regular exit end every follower with the error for a process that shuts down."""
        yield
        self.close(goodbye)

    @contextlib.asynccontextmanager
    async def open(self, tenant: str, wanted: AuditFilter, after: Position | None) -> AsyncIterator[AuditReader]:
        """Yield a follower that begins now, or after a position.

        Raises `Overloaded` if there are too many, `Unavailable` if the stream cannot be read, and the error given to
        `close()`.
        """
        info = await self._history.info(tenant)
        # Do not await before the follower is counted.
        self._require_room(tenant)
        now = Position(epoch_of(info.created), info.state.last_seq)
        follower = AuditReader(wanted, after or now)
        self._followers[follower] = tenant
        source = _FollowedStream(tenant, audit_of(tenant).stream, wanted.subject(tenant))
        task = self._tasks.create_task(self._follow(follower, source), name="follow the audit stream")
        try:
            yield follower
        finally:
            del self._followers[follower]
            task.cancel()

    def close(self, error: BridgeError) -> None:
        """End every follower with this error, and refuse new ones with it."""
        self._closed = error
        for follower in self._followers:
            follower.end(error)

    def _require_room(self, tenant: str) -> None:
        if self._closed is not None:
            raise self._closed
        tenants = list(self._followers.values())
        if len(tenants) >= MAX_FOLLOWERS or tenants.count(tenant) >= MAX_FOLLOWERS_PER_TENANT:
            raise Overloaded("too many followers of the audit stream at this process; close some of them")

    async def _follow(self, follower: AuditReader, source: _FollowedStream) -> None:
        try:
            await self._follow_patiently(follower, source)
        except (BridgeError, JetStreamError, nats.errors.Error) as exc:
            self._warn(exc)
            follower.end(Unavailable("the audit stream cannot be read now; come back with the last id"))
        except Exception:
            log.exception("a follower of the audit stream failed")
            follower.end(Unavailable("following the audit stream failed; resume from the last id"))

    async def _follow_patiently(self, follower: AuditReader, source: _FollowedStream) -> None:
        """Follow until it has failed for ten seconds without progress, then raise the reason."""
        got_on_at, position = self._loop.time(), follower.position
        while True:
            try:
                await self._consume(follower, source)
                got_on_at = self._loop.time()
            except (BridgeError, JetStreamError, nats.errors.Error):
                if follower.position != position:
                    got_on_at, position = self._loop.time(), follower.position
                elif self._loop.time() - got_on_at > PATIENCE_SECONDS:
                    raise
            # A consumer may break as soon as it is made.
            await asyncio.sleep(RETRY_SECONDS)

    async def _consume(self, follower: AuditReader, source: _FollowedStream) -> None:
        """Follow from the follower's position until the consumer breaks."""
        await self._leave_retired(follower, source)
        _place(follower, await self._history.info(source.tenant))
        await self._catch_up(follower, source)
        beginning = _Beginning(follower)
        consumer = OrderedConsumer(self._connection, source.stream, ConsumerOrder(), beginning.take)
        begin = follower.position.sequence + 1
        async with consumer.deliver(source.subject, deliver_policy="by_start_sequence", opt_start_seq=begin):
            beginning.begin(await self._history.info(source.tenant))
            while not await consumer.wait(HEARTBEAT_SECONDS):
                pass

    async def _leave_retired(self, follower: AuditReader, source: _FollowedStream) -> None:
        """Read the retired stream to its end if the follower is in it. The tenant's own follows from its beginning."""
        retired = await self._history.retired()
        if retired is None or follower.position.epoch != epoch_of(retired.created):
            return
        _place(follower, retired)
        is_behind = True
        while is_behind:
            begin = follower.position.sequence + 1
            messages = await self._history.forward(RETIRED_AUDIT_STREAM, source.subject, begin, PAGE)
            for message in messages:
                follower.take(message.sequence, message.data)
            await follower.wait_read()
            is_behind = len(messages) == PAGE
        own = await self._history.info(source.tenant)
        follower.position = Position(epoch_of(own.created), 0)

    def _warn(self, error: Exception) -> None:
        """Log why a follower is ended, but not for each of many."""
        if self._warnings.due():
            log.warning("ending followers of the audit stream, because it cannot be read: %s", error)

    async def _catch_up(self, follower: AuditReader, source: _FollowedStream) -> None:
        """Read the stored records after the follower's position."""
        is_behind = True
        while is_behind:
            messages = await self._history.forward(source.stream, source.subject, follower.position.sequence + 1, PAGE)
            if _place(
                follower, await self._history.info(source.tenant)
            ):  # the stream has dropped records, before or after the page was read
                continue
            for message in messages:
                follower.take(message.sequence, message.data)
            # The follower may read for a long time.
            await follower.wait_read()
            is_behind = len(messages) == PAGE or _place(follower, await self._history.info(source.tenant))


class _Beginning:
    """The messages of a new consumer, held until its start is confirmed.

    If the wanted message is gone, JetStream begins with the oldest one without saying so.
    """

    def __init__(self, follower: AuditReader) -> None:
        self._follower = follower
        self._buffered: list[tuple[int, bytes]] | None = []

    def take(self, msg: Msg, place: ConsumerPlace) -> None:
        """Take the next record."""
        if self._buffered is None:
            self._follower.take(place.stream_sequence, msg.data)
        elif len(self._buffered) < MAX_UNREAD:
            self._buffered.append((place.stream_sequence, msg.data))
        else:
            self._follower.end(Overloaded("records come faster than they can be sent; resume from the last id"))

    def begin(self, info: StreamInfo) -> None:
        """Pass on the held messages, and later ones as they come. `info` is the stream's state afterwards."""
        held, self._buffered = self._buffered or [], None
        _place(self._follower, info)
        for sequence, data in held:
            if sequence > self._follower.position.sequence:
                self._follower.take(sequence, data)


def _place(follower: AuditReader, info: StreamInfo) -> bool:
    """Move a follower past messages that the stream has lost. Return whether there were any."""
    epoch, position = epoch_of(info.created), follower.position
    kept = after_loss(info, position.sequence, same=position.epoch == epoch)
    if kept is None:
        return False
    follower.jump(Position(epoch, kept))
    return True
