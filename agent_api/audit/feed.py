"""Records as they come, for each follower by an ordered consumer of its own: administrators are few.

What is stored already is read page by page, no faster than the follower takes it; the consumer delivers the rest.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import NamedTuple

import nats.errors
from nats.aio.msg import Msg

from agent_api.events.positions import Position, epoch_of
from protocol.audit import AuditFilter, read_record
from protocol.errors import BridgeError, Overloaded, Unavailable
from protocol.runtime.audit_history import AuditHistory, after_loss
from protocol.runtime.jetstream import JetStreamError, StreamInfo
from protocol.runtime.nats import Connection
from protocol.runtime.ordered import HEARTBEAT_SECONDS, Order, OrderedConsumer, Place
from protocol.subjects import AUDIT_STREAM

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
    """A wanted record as it is stored."""

    position: Position
    data: bytes


class Missed(NamedTuple):
    """Records may have been missed; the follower goes on after `position`."""

    position: Position


Item = Record | Missed


class Follower:
    """One follower. `next()` returns what came; `close()` has it raise."""

    def __init__(self, wanted: AuditFilter, position: Position) -> None:
        self.position = position
        self._wanted = wanted
        self._unread: list[Item] = []
        self._unread_bytes = 0
        self._news, self._all_read = asyncio.Event(), asyncio.Event()
        self._ended: BridgeError | None = None

    async def next(self) -> list[Item]:
        """Wait for records and return them. Raises the `BridgeError` that ends this follower."""
        await self._news.wait()
        self._news.clear()
        if self._ended is not None:
            raise self._ended
        items, self._unread, self._unread_bytes = self._unread, [], 0
        self._all_read.set()
        return items

    async def wait_read(self) -> None:
        """Wait until all that came was returned."""
        while self._unread:
            self._all_read.clear()
            await self._all_read.wait()

    @property
    def passed(self) -> Position | None:
        """What this follower may resume from, None while something that came has not been returned or won't be."""
        return None if self._unread or self._ended is not None else self.position

    def end(self, error: BridgeError) -> None:
        """Have `next()` raise this."""
        self._ended = self._ended or error
        self._news.set()

    def take(self, sequence: int, data: bytes) -> None:
        """Take what stands at a sequence; a follower that does not read is ended."""
        self.position = Position(self.position.epoch, sequence)
        record = read_record(data)
        if record is not None and self._wanted.wants(record):
            self._add(Record(self.position, data))

    def jump(self, position: Position) -> None:
        """Go on elsewhere, and say that something may be missing."""
        self.position = position
        self._add(Missed(position))

    def _add(self, item: Item) -> None:
        if len(self._unread) >= MAX_UNREAD or self._unread_bytes >= MAX_UNREAD_BYTES:
            self._unread.clear()
            self.end(Overloaded("you read too slowly; resume from the last id"))
            return
        self._unread.append(item)
        self._unread_bytes += len(item.data) if isinstance(item, Record) else 0
        self._news.set()


class Feed:
    """All followers of this process. Their consumers run in `tasks`."""

    def __init__(self, connection: Connection, history: AuditHistory, tasks: asyncio.TaskGroup) -> None:
        self._connection = connection
        self._history = history
        self._tasks = tasks
        self._followers: dict[Follower, str] = {}
        self._closed: BridgeError | None = None
        self._loop = asyncio.get_running_loop()
        self._log_next = 0.0

    @contextlib.asynccontextmanager
    async def open(self, tenant: str, wanted: AuditFilter, after: Position | None) -> AsyncIterator[Follower]:
        """Give a follower, from now on or after a position.

        Raises `Overloaded` where there are too many, `Unavailable` where the stream cannot be read, and what `close()`
        was given.
        """
        info = await self._history.info()
        self._require_room(tenant)  # with no turn of the loop until the follower is counted
        now = Position(epoch_of(info.created), info.state.last_seq)
        follower = Follower(wanted, after or now)
        self._followers[follower] = tenant
        task = self._tasks.create_task(self._follow(follower, wanted.subject(tenant)), name="follow the audit stream")
        try:
            yield follower
        finally:
            del self._followers[follower]
            task.cancel()

    def close(self, error: BridgeError) -> None:
        """End every follower with this error; new ones are refused with it."""
        self._closed = error
        for follower in self._followers:
            follower.end(error)

    def _require_room(self, tenant: str) -> None:
        if self._closed is not None:
            raise self._closed
        tenants = list(self._followers.values())
        if len(tenants) >= MAX_FOLLOWERS or tenants.count(tenant) >= MAX_FOLLOWERS_PER_TENANT:
            raise Overloaded("as many follow the audit stream at this process as it takes; close some of them")

    async def _follow(self, follower: Follower, subject: str) -> None:
        try:
            await self._follow_patiently(follower, subject)
        except (BridgeError, JetStreamError, nats.errors.Error) as exc:
            self._warn(exc)
            follower.end(Unavailable("the audit stream cannot be read now; come back with the last id"))
        except Exception:
            log.exception("a follower of the audit stream failed")
            follower.end(Unavailable("following the audit stream failed; resume from the last id"))

    async def _follow_patiently(self, follower: Follower, subject: str) -> None:
        """Follow until following has failed for some seconds without getting on; raise why."""
        got_on_at, position = self._loop.time(), follower.position
        while True:
            try:
                await self._consume(follower, subject)
                got_on_at = self._loop.time()
            except (BridgeError, JetStreamError, nats.errors.Error):
                if follower.position != position:
                    got_on_at, position = self._loop.time(), follower.position
                elif self._loop.time() - got_on_at > PATIENCE_SECONDS:
                    raise
            await asyncio.sleep(RETRY_SECONDS)  # a consumer may break as soon as it is made, too

    async def _consume(self, follower: Follower, subject: str) -> None:
        """Follow from where the follower is until the consumer breaks."""
        _place(follower, await self._history.info())
        await self._catch_up(follower, subject)
        beginning = _Beginning(follower)
        consumer = OrderedConsumer(self._connection, AUDIT_STREAM, Order(), beginning.take)
        begin = follower.position.sequence + 1
        async with consumer.deliver(subject, deliver_policy="by_start_sequence", opt_start_seq=begin):
            beginning.begin(await self._history.info())
            while not await consumer.wait(HEARTBEAT_SECONDS):
                pass

    def _warn(self, error: Exception) -> None:
        """Log why a follower is sent away; not for each of many."""
        now = self._loop.time()
        if now >= self._log_next:
            self._log_next = now + LOG_SECONDS
            log.warning("followers of the audit stream are sent away, for it cannot be read: %s", error)

    async def _catch_up(self, follower: Follower, subject: str) -> None:
        """Read what is stored after the follower's place."""
        is_behind = True
        while is_behind:
            messages = await self._history.forward(subject, follower.position.sequence + 1, PAGE)
            if _place(follower, await self._history.info()):  # some was let go, before the page was read or since
                continue
            for message in messages:
                follower.take(message.sequence, message.data)
            await follower.wait_read()  # which may take long
            is_behind = len(messages) == PAGE or _place(follower, await self._history.info())


class _Beginning:
    """What a new consumer delivers, held until it is known whether it began where it was to.

    JetStream begins with the oldest that is kept where it has let go what was asked for, and does not say so.
    """

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._held: list[tuple[int, bytes]] | None = []

    def take(self, msg: Msg, place: Place) -> None:
        """Take the next record."""
        if self._held is None:
            self._follower.take(place.stream_sequence, msg.data)
        elif len(self._held) < MAX_UNREAD:
            self._held.append((place.stream_sequence, msg.data))
        else:
            self._follower.end(Overloaded("more comes than can be told; resume from the last id"))

    def begin(self, info: StreamInfo) -> None:
        """Hand out what is held, and from now on what comes; `info` is what the stream held since."""
        held, self._held = self._held or [], None
        _place(self._follower, info)
        for sequence, data in held:
            if sequence > self._follower.position.sequence:
                self._follower.take(sequence, data)


def _place(follower: Follower, info: StreamInfo) -> bool:
    """Have a follower go on elsewhere where the stream does not hold all that follows its place; return whether so."""
    epoch, position = epoch_of(info.created), follower.position
    kept = after_loss(info, position.sequence, same=position.epoch == epoch)
    if kept is None:
        return False
    follower.jump(Position(epoch, kept))
    return True
