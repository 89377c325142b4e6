"""What the stream holds of the past, read page by page for readers whose place the recent messages no longer cover.

By batched direct gets (ADR-31), which leave nothing behind on the server and deliver no more than was asked for. Any
replica may answer them, one that lags behind too: so where a page is the last, the stream's leader confirms that
nothing follows; and whether something is gone from the front is asked after the page was read.
"""

import asyncio
import base64
import itertools
import logging
from typing import Any

import msgspec
from nats.aio.msg import Msg

from agent_api.events import budget
from agent_api.events.budget import Budget, Whose
from agent_api.events.cursor import Page
from agent_api.events.filters import Filters
from agent_api.events.gaps import gap_of
from agent_api.events.messages import Message, read_message
from agent_api.events.positions import Position
from protocol import codec
from protocol.errors import Unavailable
from protocol.runtime import jetstream
from protocol.runtime.jetstream import JetStreamError
from protocol.runtime.nats import Connection
from protocol.subjects import EVENTS_STREAM

MAX_READS = 16
PAGE_MESSAGES = 256
PAGE_BYTES = 64 * 1024
READ_SECONDS = 2.0
LOG_SECONDS = 60.0
_END_OF_BATCH, _NOT_FOUND = "204", "404"

log = logging.getLogger(__name__)


class _Stored(msgspec.Struct, frozen=True):
    subject: str
    seq: int
    data: str = ""


class _Got(msgspec.Struct, frozen=True):
    message: _Stored


_got = msgspec.json.Decoder(_Got)


class _Batch:
    """The messages of one direct get, as they arrive. `done` becomes true where none is left after them."""

    def __init__(self, position: Position, done: asyncio.Future[bool]) -> None:
        self.done = done
        self.messages: list[Message] = []
        self.reached = position.sequence
        self._epoch = position.epoch
        self._previous = 0

    def take(self, msg: Msg) -> None:
        """Take an answer: a message, the end of the batch, or that there is none."""
        headers = msg.headers or {}
        status = headers.get("Status")
        if self.done.done():
            return
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
        """Add a message that was found."""
        self._previous = self.reached = sequence
        message = read_message(subject, Position(self._epoch, sequence), data)
        if message is not None:
            self.messages.append(message)


class History:
    """Reads the past; a bounded number of pages at a time."""

    def __init__(self, connection: Connection, max_reads: int = MAX_READS) -> None:
        self._connection = connection
        self._slots = asyncio.Semaphore(max_reads)
        self.budget = Budget(budget.MAX_BYTES)
        self._inbox = connection.new_inbox()
        self._numbers = itertools.count()
        self._batches: dict[str, _Batch] = {}
        self._log_next = 0.0

    async def start(self) -> None:
        """Subscribe for what direct gets answer."""
        await self._connection.subscribe_directly(f"{self._inbox}.*", self._on_answer)

    async def read(self, after: Position, until: int, filters: Filters, whose: Whose) -> Page:
        """Return what may be wanted after a position; where the messages end, nothing else is there up to `until`.

        `until` is a sequence that the stream has reached. A position that the stream does not hold any more, or never
        had, is a gap. Raises `Unavailable` where the stream cannot be read now, or such readers hold too much of it.
        """
        subject = filters.subject(whose[0])
        try:
            async with self._slots:
                if not self.budget.has_room(whose):
                    raise Unavailable("readers that take little hold too much of the past; try again in a moment")
                page = await self._page(after, until, subject)
                info = await jetstream.stream_info(self._connection, EVENTS_STREAM)
        except JetStreamError as exc:
            raise Unavailable("the stream of events cannot be read now; try again in a moment") from exc
        if info is None:
            raise Unavailable("the stream of events is not there yet; try again in a moment")
        gap = gap_of(after, info)
        return Page(gap=gap) if gap else Page(page.messages, min(page.reached, info.state.last_seq))

    def warn(self, why: str) -> None:
        """Log that a reader was sent away because the past could not be read; not for each of many readers."""
        now = asyncio.get_running_loop().time()
        if now >= self._log_next:
            self._log_next = now + LOG_SECONDS
            log.warning("readers of events are sent away, for what has happened before cannot be read: %s", why)

    async def _page(self, after: Position, until: int, subject: str) -> Page:
        batch = await self._batch(after, subject)
        if batch.done.result():
            missed = await self._next_on_leader(batch.reached + 1, subject)
            if missed is None:
                batch.reached = max(batch.reached, until)
            else:
                batch.add(missed.subject, missed.seq, base64.b64decode(missed.data))
        return Page(batch.messages, batch.reached)

    async def _batch(self, after: Position, subject: str) -> _Batch:
        number = str(next(self._numbers))
        batch = self._batches[number] = _Batch(after, asyncio.get_running_loop().create_future())
        request = {
            "seq": after.sequence + 1,
            "next_by_subj": subject,
            "batch": PAGE_MESSAGES,
            "max_bytes": PAGE_BYTES,
        }
        try:
            self._connection.publish_now(
                f"{jetstream.API}.DIRECT.GET.{EVENTS_STREAM}", codec.encode(request), reply=f"{self._inbox}.{number}"
            )
            async with asyncio.timeout(READ_SECONDS):
                await batch.done
        except TimeoutError as exc:
            raise Unavailable("the stream of events does not answer; try again in a moment") from exc
        finally:
            del self._batches[number]
        return batch

    async def _next_on_leader(self, sequence: int, subject: str) -> _Stored | None:
        request: dict[str, Any] = {"seq": sequence, "next_by_subj": subject}
        try:
            got = await jetstream.request(self._connection, f"STREAM.MSG.GET.{EVENTS_STREAM}", _got, **request)
        except JetStreamError as exc:
            if exc.err_code == jetstream.MESSAGE_NOT_FOUND:
                return None
            raise
        return got.message

    def _on_answer(self, msg: Msg) -> None:
        batch = self._batches.get(msg.subject.rpartition(".")[2])
        if batch is not None:
            batch.take(msg)
