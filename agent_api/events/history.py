"""History: reads the stream page by page, for readers with a position that the recent messages no longer cover.

It uses batched direct gets (ADR-31), which leave no consumer on the server and deliver no more than requested. Any
replica may answer, even one that lacks the newest messages. So the stream's leader confirms that a last page is the
last, and lost messages at the front are checked after the read.

A position may belong to the common stream of older versions. That is read to its end, and then the tenant's own stream
from its beginning.
"""

import asyncio
import base64
import itertools
import logging
from collections.abc import Callable
from typing import Any

import msgspec
from nats.aio.msg import Msg

from agent_api.events.cursor import EventPage
from agent_api.events.gaps import gap_of
from agent_api.events.messages import Message, read_message
from protocol import codec
from protocol.errors import Unavailable
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.jetstream import JetStreamError, StreamInfo
from protocol.runtime.streams.positions import Position, epoch_of
from protocol.runtime.streams.stores import TenantStore
from protocol.shares import Shares
from protocol.subjects import RETIRED_EVENTS_STREAM

MAX_READS = 16
PAGE_MESSAGES = 256
PAGE_BYTES = 64 * 1024
MAX_HELD_BYTES = 64 * 1024 * 1024  # of all readers together
READ_SECONDS = 2.0
LOG_SECONDS = 60.0
_END_OF_BATCH, _NOT_FOUND = "204", "404"

log = logging.getLogger(__name__)


class _StoredEvent(msgspec.Struct, frozen=True):
    subject: str
    seq: int
    data: str = ""


class _HistoryReply(msgspec.Struct, frozen=True):
    message: _StoredEvent


_got = msgspec.json.Decoder(_HistoryReply)


class _HistoryBatch:
    """The messages of one direct get, as they arrive. `done` becomes true if no message is left behind them."""

    def __init__(self, position: Position, done: asyncio.Future[bool]) -> None:
        self.done = done
        self.messages: list[Message] = []
        self.reached = position.sequence
        self._epoch = position.epoch
        self._previous = 0

    def take(self, msg: Msg) -> None:
        """Take an answer: a message, the end of the batch, or "no message"."""
        headers = msg.headers or {}
        status = headers.get("Status")
        if self.done.done():
            return
        # Messages may be lost on the way. Each answer names the one before it, so a loss ends the batch.
        if status == _NOT_FOUND:
            self.done.set_result(True)
        elif status is not None and status != _END_OF_BATCH:
            self.done.set_exception(Unavailable("the stream of events is not there yet; try again in a moment"))
        elif int(headers["Nats-Last-Sequence"]) != self._previous:
            self.done.set_exception(Unavailable("a part of the stream of events got lost; try again in a moment"))
        elif status == _END_OF_BATCH:
            self.done.set_result(int(headers["Nats-Num-Pending"]) == 0)
        else:
            self.add(headers["Nats-Subject"], int(headers["Nats-Sequence"]), msg.data)

    def add(self, subject: str, sequence: int, data: bytes) -> None:
        """Add a message."""
        self._previous = self.reached = sequence
        message = read_message(subject, Position(self._epoch, sequence), data)
        if message is not None:
            self.messages.append(message)


class History:
    """Reads pages of the past, a bounded number at a time."""

    def __init__(self, connection: Connection, max_reads: int = MAX_READS) -> None:
        self._connection = connection
        self._slots = asyncio.Semaphore(max_reads)
        self.shares = Shares(MAX_HELD_BYTES, "slow readers use up the memory for events; resume from the last id")
        self._inbox = connection.new_inbox()
        self._numbers = itertools.count()
        self._batches: dict[str, _HistoryBatch] = {}
        self._warnings = LogThrottle(LOG_SECONDS, asyncio.get_running_loop().time)

    async def start(self) -> None:
        """Subscribe for the answers of direct gets."""
        await self._connection.subscribe_directly(f"{self._inbox}.*", self._on_answer)

    async def read(
        self, store: TenantStore, after: Position, until: int, subject: str, reserve: Callable[[], None]
    ) -> EventPage:
        """Return a page of messages after a position. `until` is a sequence that the tenant's stream has reached.

        If no stream has the position any more, or ever had it, the page is a gap. `reserve` is called in this reader's
        turn, and may raise `Overloaded`, so that no page is fetched without room for it. Raises `Unavailable` if the
        stream cannot be read now.
        """
        try:
            # Reserve in the slot, not before: readers that wait for one would hold room that others could use.
            async with self._slots:
                reserve()
                return await self._read(store.stream, after, until, subject)
        except JetStreamError as exc:
            raise Unavailable("the stream of events cannot be read now; try again in a moment") from exc

    async def _read(self, stream: str, after: Position, until: int, subject: str) -> EventPage:
        # Ask for the stream's state after the page: messages that it had lost before the read are then known as a gap.
        page = await self._page(stream, after, until, subject)
        info = await jetstream.stream_info(self._connection, stream)
        if info is None:
            raise Unavailable("the stream of events is not there yet; try again in a moment")
        if after.epoch != epoch_of(info.created):
            retired = await self._read_retired(after, subject, Position(epoch_of(info.created), 0))
            if retired is not None:
                return retired
        return _checked(page, after, info)

    async def _read_retired(self, after: Position, subject: str, then: Position) -> EventPage | None:
        """Return the retired stream's messages after a position, or None if the position does not belong to it."""
        info = await jetstream.stream_info(self._connection, RETIRED_EVENTS_STREAM)
        if info is None or after.epoch != epoch_of(info.created):
            return None
        last = info.state.last_seq
        page = _checked(await self._page(RETIRED_EVENTS_STREAM, after, last, subject), after, info)
        return msgspec.structs.replace(page, then=then) if page.reached >= last and not page.gap else page

    def warn(self, why: str) -> None:
        """Log that a reader was ended because the past could not be read, but not for each of many readers."""
        if self._warnings.due():
            log.warning("ending readers of events, because earlier events cannot be read: %s", why)

    async def _page(self, stream: str, after: Position, until: int, subject: str) -> EventPage:
        batch = await self._batch(stream, after, subject)
        # A replica may lag behind and say that nothing follows. Only the leader's word is final.
        if batch.done.result():
            missed = await self._next_on_leader(stream, batch.reached + 1, subject)
            if missed is None:
                batch.reached = max(batch.reached, until)
            else:
                batch.add(missed.subject, missed.seq, base64.b64decode(missed.data))
        return EventPage(batch.messages, batch.reached)

    async def _batch(self, stream: str, after: Position, subject: str) -> _HistoryBatch:
        number = str(next(self._numbers))
        batch = self._batches[number] = _HistoryBatch(after, asyncio.get_running_loop().create_future())
        request = {
            "seq": after.sequence + 1,
            "next_by_subj": subject,
            "batch": PAGE_MESSAGES,
            "max_bytes": PAGE_BYTES,
        }
        try:
            self._connection.publish_now(
                f"{jetstream.API}.DIRECT.GET.{stream}", codec.encode(request), reply=f"{self._inbox}.{number}"
            )
            async with asyncio.timeout(READ_SECONDS):
                await batch.done
        except TimeoutError as exc:
            raise Unavailable("the stream of events does not answer; try again in a moment") from exc
        finally:
            # Answers that come later find no batch and are ignored.
            del self._batches[number]
        return batch

    async def _next_on_leader(self, stream: str, sequence: int, subject: str) -> _StoredEvent | None:
        request: dict[str, Any] = {"seq": sequence, "next_by_subj": subject}
        try:
            got = await jetstream.request(self._connection, f"STREAM.MSG.GET.{stream}", _got, **request)
        except JetStreamError as exc:
            if exc.err_code == jetstream.MESSAGE_NOT_FOUND:
                return None
            raise
        return got.message

    def _on_answer(self, msg: Msg) -> None:
        batch = self._batches.get(msg.subject.rpartition(".")[2])
        if batch is not None:
            batch.take(msg)


def _checked(page: EventPage, after: Position, info: StreamInfo) -> EventPage:
    """Return a page, or the gap before it; `info` is the stream's state after the read."""
    gap = gap_of(after, info)
    return EventPage(gap=gap) if gap else EventPage(page.messages, min(page.reached, info.state.last_seq))
