"""Reads the audit stream backwards, newest first, which JetStream itself cannot do.

Direct gets only go forward. So we search for the newest stretch of 256 sequences with a message on the wanted subject,
by doubling and then halving, each step one get of one message. Then we read that stretch. The cost of a page is
bounded, so a page may be shorter than asked for, or empty, although older pages follow.

Each tenant has a stream of its own. Older versions had one stream for all tenants; its records follow as the oldest.
"""

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from protocol.audit import AuditFilter, AuditRecord, read_record
from protocol.errors import Conflict, Unavailable
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.direct_get import StoredMessage, StoredMessages
from protocol.runtime.streams.jetstream import JetStreamError, StreamInfo, StreamState
from protocol.runtime.streams.positions import Position, epoch_of
from protocol.runtime.streams.stores import audit_of
from protocol.runtime.streams.tenant_stores import TenantStores
from protocol.subjects import RETIRED_AUDIT_STREAM

STRETCH = 256
MAX_GETS = 200
MAX_LOOKED_THROUGH = 8192
MAX_PAGE_BYTES = 1024 * 1024
MAX_PAGES_AT_ONCE = 4
CLOCKS_APART_SECONDS = 60  # the most by which a gateway's `at` may differ from the server's time of storing

First = Callable[[int], Awaitable[int | None]]


class Found(NamedTuple):
    """A wanted record, its position, and its stored bytes."""

    position: Position
    record: AuditRecord
    data: bytes


class HistoryPage(NamedTuple):
    """Records, newest first. `reached` is the oldest position that was searched; `more`: older ones may exist."""

    found: list[Found]
    reached: Position
    more: bool


NOTHING = StreamInfo({}, "", StreamState(0))  # stands for the stream of a tenant that has none yet


class AuditHistory:
    """Reads pages, four at a time. `start()` it first. With `stores` it lets a registry make a missing stream."""

    def __init__(self, connection: Connection, stores: TenantStores | None = None) -> None:
        self._connection = connection
        self._stores = stores
        self._messages = StoredMessages(connection)
        self._slots = asyncio.Semaphore(MAX_PAGES_AT_ONCE)

    async def start(self) -> None:
        """Subscribe for the answers."""
        await self._messages.start()

    async def info(self, tenant: str) -> StreamInfo:
        """Return the state of a tenant's stream. A missing stream is made now; without `stores` return `NOTHING`.

        Raises `Unavailable` if the stream cannot be read or made.
        """
        store = audit_of(tenant)
        info = await self._info(store.stream)
        if info is None and self._stores is not None:
            self._stores.forget(store.stream)
            await self._stores.ensure(store)
            info = await self._info(store.stream)
            if info is None:
                raise Unavailable("the audit stream is not there yet; try again in a moment")
        return info or NOTHING

    async def retired(self) -> StreamInfo | None:
        """Return the state of the older versions' stream, or None if there is none. Raises as `info()` does."""
        return await self._info(RETIRED_AUDIT_STREAM)

    async def page(self, tenant: str, wanted: AuditFilter, limit: int, before: Position | None = None) -> HistoryPage:
        """Return the newest wanted records of a tenant, `limit` at most, older than `before` if that is given.

        Raises `Unavailable` if a stream cannot be read now, and `Conflict` if `before` belongs to a stream that no
        longer exists.
        """
        stream = audit_of(tenant).stream
        async with self._slots:
            own, retired = await self._info(stream) or NOTHING, await self.retired()
            if retired is not None and before is not None and before.epoch == epoch_of(retired.created):
                return await self._page(RETIRED_AUDIT_STREAM, retired, wanted.subject(tenant), wanted, limit, before)
            if before is not None and before.epoch != epoch_of(own.created):
                raise Conflict("`after`: the stream was made anew since; begin without it")
            page = await self._page(stream, own, wanted.subject(tenant), wanted, limit, before)
        if page.more or retired is None or not retired.state.messages:
            return page
        return page._replace(reached=Position(epoch_of(retired.created), retired.state.last_seq + 1), more=True)

    async def forward(self, stream: str, subject: str, first: int, count: int) -> list[StoredMessage]:
        """Return up to `count` messages on a subject, oldest first, from the sequence `first` on.

        Raises `Unavailable` if the stream cannot be read now.
        """
        async with self._slots:
            return await self._messages.get(stream, subject, count, seq=first)

    async def _info(self, stream: str) -> StreamInfo | None:
        try:
            return await jetstream.stream_info(self._connection, stream)
        except JetStreamError as exc:
            raise Unavailable("the audit stream cannot be read now; try again in a moment") from exc

    async def _page(
        self,
        stream: str,
        info: StreamInfo,
        subject: str,
        wanted: AuditFilter,
        limit: int,
        before: Position | None,
    ) -> HistoryPage:
        last = info.state.last_seq
        end = min(last + 1, before.sequence if before is not None else last + 1)
        reading = _BackwardReading(
            _StreamReader(self._messages, stream, subject), epoch_of(info.created), wanted, limit
        )
        if wanted.until is not None and end > 1:
            end = await reading.end_before(_shifted(wanted.until, CLOCKS_APART_SECONDS), end)
        more = await reading.back(max(info.state.first_seq, 1), end)
        return HistoryPage(reading.found, Position(epoch_of(info.created), reading.reached), more)


class _StreamReader(NamedTuple):
    """Reads one subject of a stream."""

    messages: StoredMessages
    stream: str
    subject: str

    async def get(self, batch: int, **start: Any) -> list[StoredMessage]:
        return await self.messages.get(self.stream, self.subject, batch, **start)


class _BackwardReading:
    """The reading of one page."""

    def __init__(self, messages: _StreamReader, epoch: str, wanted: AuditFilter, limit: int) -> None:
        self.found: list[Found] = []
        self.reached = 0
        self._messages = messages
        self._epoch = epoch
        self._wanted = wanted
        self._limit = limit
        self._since = None if wanted.since is None else _shifted(wanted.since, -CLOCKS_APART_SECONDS)
        self._gets = 0
        self._looked_through = 0
        self._bytes = 0

    async def end_before(self, instant: str, end: int) -> int:
        """Return the sequence below which every message was stored before `instant`, or `end` if it is lower."""
        later = await self._messages.get(1, start_time=instant)
        return min(end, later[0].sequence) if later else end

    async def back(self, first: int, end: int) -> bool:
        """Read backwards from below `end` down to `first`. Return whether older messages may be left."""
        self.reached = end
        while self.reached > first:
            if self._gets >= MAX_GETS or self._looked_through >= MAX_LOOKED_THROUGH:
                return True
            stretch = await last_stretch(self._first, first, self.reached)
            if stretch is None:
                self.reached = first
                return False
            if not await self._read(*stretch):
                return self.reached > first
        return False

    async def _first(self, sequence: int) -> int | None:
        self._gets += 1
        found = await self._messages.get(1, seq=sequence)
        return found[0].sequence if found else None

    async def _read(self, first: int, end: int) -> bool:
        """Take the wanted records of a stretch, newest first. Return whether to go on below it."""
        self._gets += 1
        messages = await self._messages.get(end - first, seq=first)
        for message in reversed([message for message in messages if message.sequence < end]):
            if self._since is not None and message.stored_at < self._since:
                self.reached = 0
                return False
            self.reached = message.sequence
            self._take(message)
            if len(self.found) == self._limit or self._bytes >= MAX_PAGE_BYTES:
                return False
        self.reached = first
        return True

    def _take(self, message: StoredMessage) -> None:
        self._looked_through += 1
        record = read_record(message.data)
        if record is not None and self._wanted.wants(record):
            self.found.append(Found(Position(self._epoch, message.sequence), record, message.data))
            self._bytes += len(message.data)


def after_loss(info: StreamInfo, sequence: int, *, same: bool) -> int | None:
    """Return the sequence after which a reader goes on if the stream has lost messages behind `sequence`, else None.

    If `same` is false, `sequence` belongs to an earlier stream, and the reader goes on with the first message.
    """
    first, last = info.state.first_seq, info.state.last_seq
    if not same:
        return max(first - 1, 0)
    if sequence > last:  # the server has returned without its last messages
        return last
    return first - 1 if sequence < first - 1 else None


async def last_stretch(first_from: First, low: int, high: int) -> tuple[int, int] | None:
    """Return the newest stretch in [low, high) with a message, 256 sequences at most, or None if there is none.

    `first_from(sequence)` returns the sequence of the next message from there on, even beyond `high`, or None.
    """

    async def holds(start: int, end: int) -> bool:
        first = await first_from(start)
        return first is not None and first < end

    end, width = high, STRETCH
    start = max(low, end - width)
    while not await holds(start, end):
        if start == low:
            return None
        end, width = start, width * 2
        start = max(low, end - width)
    while end - start > STRETCH:
        middle = (start + end) // 2
        if await holds(middle, end):
            start = middle
        else:
            end = middle
    return start, end


def _shifted(instant: str, seconds: float) -> str:
    moved = datetime.datetime.fromisoformat(instant) + datetime.timedelta(seconds=seconds)
    return moved.isoformat(timespec="milliseconds").replace("+00:00", "Z")
