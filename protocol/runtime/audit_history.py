"""The audit stream read backwards, newest first, which JetStream itself cannot do.

Direct gets go forward only. So the newest stretch of sequences that holds something wanted is looked for, by doubling
and then halving, each step one get of one message; then the stretch is read. What a single page may cost is bounded: a
page may be shorter than asked for, or empty, and yet not be the last.
"""

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from protocol.audit import AuditFilter, AuditRecord, read_record
from protocol.errors import Unavailable
from protocol.runtime import jetstream
from protocol.runtime.jetstream import JetStreamError, StreamInfo
from protocol.runtime.nats import Connection
from protocol.runtime.stored import StoredMessage, StoredMessages
from protocol.subjects import AUDIT_STREAM

STRETCH = 256
MAX_GETS = 200
MAX_LOOKED_THROUGH = 8192
MAX_PAGE_BYTES = 1024 * 1024
MAX_PAGES_AT_ONCE = 4
CLOCKS_APART_SECONDS = 60  # between the gateways, which write `at`, and the server, which knows when it stored

First = Callable[[int], Awaitable[int | None]]


class Found(NamedTuple):
    """A wanted record with its sequence, and as it is stored."""

    sequence: int
    record: AuditRecord
    data: bytes


class HistoryPage(NamedTuple):
    """Records, newest first; all from `reached` on were looked through, `more` tells whether there are older ones.

    `created` is when the stream was made: sequences of another one mean nothing.
    """

    found: list[Found]
    reached: int
    more: bool
    created: str


class AuditHistory:
    """Reads pages, a few at a time. `start()` it first."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._messages = StoredMessages(connection, AUDIT_STREAM)
        self._slots = asyncio.Semaphore(MAX_PAGES_AT_ONCE)

    async def start(self) -> None:
        """Subscribe for what is read."""
        await self._messages.start()

    async def info(self) -> StreamInfo:
        """Return what the stream holds. Raises `Unavailable` where that cannot be known."""
        try:
            info = await jetstream.stream_info(self._connection, AUDIT_STREAM)
        except JetStreamError as exc:
            raise Unavailable("the audit stream cannot be read now; try again in a moment") from exc
        if info is None:
            raise Unavailable("the audit stream does not exist yet; the registry makes it")
        return info

    async def page(self, tenant: str, wanted: AuditFilter, limit: int, before: int | None = None) -> HistoryPage:
        """Return the newest wanted records of a tenant, all below the sequence `before` where that is given.

        Raises `Unavailable` where the stream cannot be read now.
        """
        async with self._slots:
            info = await self.info()
            end = min(info.state.last_seq + 1, before or info.state.last_seq + 1)
            reading = _Reading(self._messages, wanted.subject(tenant), wanted, limit)
            if wanted.until is not None:
                end = await reading.end_before(_shifted(wanted.until, CLOCKS_APART_SECONDS), end)
            more = await reading.back(max(info.state.first_seq, 1), end)
            return HistoryPage(reading.found, reading.reached, more, info.created)

    async def forward(self, subject: str, first: int, count: int) -> list[StoredMessage]:
        """Return the first `count` messages on a subject from a sequence on; fewer where there are no more.

        Raises `Unavailable` where the stream cannot be read now.
        """
        async with self._slots:
            return await self._messages.get(subject, count, seq=first)


class _Reading:
    """The reading of one page."""

    def __init__(self, messages: StoredMessages, subject: str, wanted: AuditFilter, limit: int) -> None:
        self.found: list[Found] = []
        self.reached = 0
        self._messages = messages
        self._subject = subject
        self._wanted = wanted
        self._limit = limit
        self._since = None if wanted.since is None else _shifted(wanted.since, -CLOCKS_APART_SECONDS)
        self._gets = 0
        self._looked_through = 0
        self._bytes = 0

    async def end_before(self, instant: str, end: int) -> int:
        """Return the sequence below which everything was stored before an instant."""
        later = await self._messages.get(self._subject, 1, start_time=instant)
        return min(end, later[0].sequence) if later else end

    async def back(self, first: int, end: int) -> bool:
        """Read backwards from below `end` down to `first`; return whether something may be left."""
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
        found = await self._messages.get(self._subject, 1, seq=sequence)
        return found[0].sequence if found else None

    async def _read(self, first: int, end: int) -> bool:
        """Take what is wanted of a stretch, newest first; return whether to go on below it."""
        self._gets += 1
        messages = await self._messages.get(self._subject, end - first, seq=first)
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
            self.found.append(Found(message.sequence, record, message.data))
            self._bytes += len(message.data)


def after_loss(info: StreamInfo, sequence: int, *, same: bool) -> int | None:
    """Return the sequence to go on after where a stream does not hold all that followed `sequence`, None where it does.

    `same` tells whether `sequence` is one of this stream. If not, all that it holds follows.
    """
    first, last = info.state.first_seq, info.state.last_seq
    if not same:
        return max(first - 1, 0)
    if sequence > last:  # the server has returned without its last messages
        return last
    return first - 1 if sequence < first - 1 else None


async def last_stretch(first_from: First, low: int, high: int) -> tuple[int, int] | None:
    """Return the newest stretch in [low, high), 256 sequences at most, that holds a message; None where none does.

    `first_from` returns the sequence of the first message at or after one, which may lie beyond `high`, or None.
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
