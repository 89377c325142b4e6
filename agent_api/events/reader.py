"""One reader: waits for the next messages, from memory or from history."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from agent_api.events.cursor import Cursor, EventPage, Item
from agent_api.events.fanout import Fanout
from agent_api.events.history import PAGE_BYTES, History
from agent_api.events.messages import Message
from agent_api.events.ring import size_of
from agent_api.events.wakeups import Wakeups
from protocol.access import Principal
from protocol.errors import BridgeError, Overloaded, Unavailable
from protocol.runtime.streams.positions import Position
from protocol.runtime.streams.stores import events_of
from protocol.shares import Piece

RETRY_SECONDS = 0.5
PATIENCE_SECONDS = 10.0  # how long to retry a page of the past
RESERVED_BYTES = 2 * PAGE_BYTES  # for a page that is being read, because `size_of()` counts data twice


class Reader:
    """Made by `Hub.open()`."""

    def __init__(self, cursor: Cursor, fanout: Fanout, history: History, wakeups: Wakeups) -> None:
        self.cursor = cursor
        self._fanout = fanout
        self._ring = fanout.ring
        self._history = history
        self._wakeups = wakeups
        self._ended: BridgeError | None = None
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._wants_page_since: float | None = None
        # The holder for whom its messages are counted.
        self._whose = (cursor.principal.tenant, cursor.principal.sub)
        # The items that the last `next()` returned. They count until the next call.
        self._returned: Sequence[Item] = ()
        self._returned_at: float | None = None
        # Runs between two calls of `next()`, while the reader is busy with the returned messages.
        self._own_clock = 0.0
        # The share for a page that only this reader holds.
        self._piece: Piece | None = None
        self._writing: asyncio.Timeout | None = None
        self._why_none = "it was not our turn"

    @property
    def position(self) -> Position:
        """The position to resume from. Everything up to it was returned by `next()` or is hidden."""
        self.cursor.settle(self._ring)
        return self.cursor.position

    def change_principal(self, principal: Principal) -> None:
        """Apply the limits of a fresh token. Its tenant must be the same."""
        assert principal.tenant == self.cursor.principal.tenant
        self.cursor.principal = principal

    async def next(self) -> list[Item]:
        """Wait for the next messages and gaps, and return them, bounded in number and size.

        May be cancelled without loss. Raises the `BridgeError` that ends this reader: `Overloaded` if it is too slow,
        `Unavailable` if history cannot be read, or the error that the hub was closed with.
        """
        self.let_go()
        self._stop_clock()
        while True:
            if self._ended is not None:
                raise self._ended
            items = self.cursor.take(self._ring, self._own_clock) or await self._go_on()
            if items:
                self._returned, self._returned_at = items, self._loop.time()
                return items

    @contextlib.asynccontextmanager
    async def while_held(self) -> AsyncIterator[None]:
        """Run the block, which writes the returned messages. Interrupt it, even in a write, if they must be dropped.

        Raises `Overloaded` then, as `next()` would.
        """
        self._writing = writing = asyncio.timeout(None)
        try:
            async with writing:
                yield
        except TimeoutError:
            if self._ended is None or not writing.expired():
                raise
            raise self._ended from None
        finally:
            self._writing = None

    def let_go(self) -> None:
        """Stop counting the returned messages. `next()` does the same."""
        self._returned = ()
        if self._piece is not None:
            self._piece.release()
            self._piece = None

    def count_held(self) -> None:
        """Count the returned messages for this reader if the ring has dropped them.

        If there is no room for them, this reader is too slow, and ends.
        """
        if self._piece is not None or not self._returned or self._ring.covers(self._returned[0].position):
            return
        size = _size_of(self._returned)
        if size and self._ended is None:
            try:
                self._hold(size)
            except Overloaded as exc:
                self._cut(exc)

    def wake(self) -> None:
        """Wake `next()`, which then checks for messages. Readers are woken in turns."""
        self._wakeups.wake(self._woken)

    def end(self, error: BridgeError) -> None:
        """Let `next()` raise this error."""
        self._ended = error
        self.wake()

    def _stop_clock(self) -> None:
        if self._returned_at is not None:
            self._own_clock += self._loop.time() - self._returned_at
            self._returned_at = None

    async def _go_on(self) -> list[Item]:
        """Read a page of the past, become live, or wait."""
        if not self.cursor.live and not self._fanout.attach(self):
            return await self._turn_page()
        self._wants_page_since = None
        if self.cursor.waiting:
            self._woken.clear()
            await self._woken.wait()
        else:
            # Let other tasks run before the next page.
            await asyncio.sleep(0)
        return []

    async def _turn_page(self) -> list[Item]:
        """Return the next page of history. It is empty if all of it is hidden, or if it cannot be read now."""
        cursor, before = self.cursor, self.cursor.position
        page = await self._read_page(before)
        if page is not None and cursor.position == before:
            # No gap has come while the page was read.
            items = cursor.turn(page)
            # The items are not larger than the reserved page, so there is room.
            self._hold(_size_of(items))
            if items or cursor.position != before:
                return items
        self.let_go()
        await asyncio.sleep(RETRY_SECONDS)
        return []

    async def _read_page(self, after: Position) -> EventPage | None:
        """Return a page, or None if it cannot be read now. Raises `Unavailable` if that has lasted 10 s."""
        subject = self.cursor.filters.subject(self._whose[0])
        until = self._ring.last if self._ring.epoch == after.epoch else 0
        if self._wants_page_since is None:
            self._wants_page_since = self._loop.time()
        patient_until = self._wants_page_since + PATIENCE_SECONDS
        try:
            async with asyncio.timeout_at(patient_until):
                page = await self._history.read(events_of(self._whose[0]), after, until, subject, self._reserve)
            self._hold(_size_of(page.messages))
        except (Unavailable, Overloaded, TimeoutError) as exc:
            self.let_go()
            if isinstance(exc, BridgeError):
                self._why_none = exc.message
            if self._loop.time() < patient_until:
                return None
            self._history.warn(self._why_none)
            raise Unavailable("earlier events cannot be read now; come back with the last id") from exc
        self._wants_page_since = None
        return page

    def _cut(self, error: BridgeError) -> None:
        """Let `next()` and `while_held()` raise this error."""
        self._returned = ()
        self.end(error)
        if self._writing is not None:
            self._writing.reschedule(self._loop.time())

    def _reserve(self) -> None:
        self._hold(RESERVED_BYTES)

    def _hold(self, size: int) -> None:
        """Count `size` bytes that only this reader holds. Raises `Overloaded` if there is no room."""
        if not size:
            self.let_go()
        elif self._piece is None:
            self._piece = self._history.shares.ask(self._whose, size, self._give_back)
        elif size > self._piece.size:
            self._piece.grow(size - self._piece.size)
        else:
            self._piece.shrink(self._piece.size - size)

    def _give_back(self, error: Overloaded) -> None:
        """Give the room back for a smaller holder.

        A page that is being written can be dropped only together with its write, so the reader ends, and may resume
        from its position. A page that is still being read asks for room again when it has arrived.
        """
        self._piece = None
        if self._returned:
            self._cut(error)


def _size_of(items: Sequence[Item]) -> int:
    return sum(size_of(item) for item in items if isinstance(item, Message))
