"""One reader, as its server holds it: waits for what comes next, wherever that has to be read from."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from agent_api.events.cursor import Cursor, Item, Page
from agent_api.events.flow import Flow
from agent_api.events.history import History
from agent_api.events.messages import Message
from agent_api.events.positions import Position
from agent_api.events.ring import size_of
from agent_api.events.turns import Turns
from protocol.access import Principal
from protocol.errors import BridgeError, Overloaded, Unavailable

RETRY_SECONDS = 0.5
PATIENCE_SECONDS = 10.0  # for a page of the past


class Reader:
    """Made by `Hub.open()`."""

    def __init__(self, cursor: Cursor, flow: Flow, history: History, turns: Turns) -> None:
        self.cursor = cursor
        self._flow = flow
        self._ring = flow.ring
        self._history = history
        self._turns = turns
        self._ended: BridgeError | None = None
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._wants_page_since: float | None = None
        self._whose = (cursor.principal.tenant, cursor.principal.sub)  # to whom what it holds is counted
        self._returned: Sequence[Item] = ()  # by the last `next()`, and held until the next one
        self._returned_at: float | None = None
        self._own_clock = 0.0  # runs between `next()` and `next()`, while the reader is busy with what was returned
        self._held_bytes = 0  # of what was returned, as far as this reader alone holds it
        self._writing: asyncio.Timeout | None = None
        self._why_none = "it was not our turn"

    @property
    def position(self) -> Position:
        """What this reader may resume from: all before it was returned by `next()`, or is not for this reader."""
        self.cursor.settle(self._ring)
        return self.cursor.position

    def change_principal(self, principal: Principal) -> None:
        """Go on with a renewed token's limits; its tenant must be the same."""
        assert principal.tenant == self.cursor.principal.tenant
        self.cursor.principal = principal

    async def next(self) -> list[Item]:
        """Wait for what comes next and return it: one or more messages and gaps, of bounded number and size.

        May be cancelled without loss. Raises the `BridgeError` that ends this reader: `Overloaded` where it has been
        too slow for long, `Unavailable` where the past cannot be read, or what the hub was closed with.
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
        """End what goes on within, a write that waits for the other side too, where what it holds must be let go.

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
        """Count what was returned before as held no more; `next()` does."""
        self._returned = ()
        if self._held_bytes:
            self._hold(0)

    def count_held(self) -> None:
        """Count what was returned of the recent messages as this reader's own, once they have let go of it.

        Where there is no room for that, this reader has become too slow, and ends.
        """
        if self._held_bytes or not self._returned or self._ring.covers(self._returned[0].position):
            return
        size = _size_of(self._returned)
        if size and self._ended is None:
            if self._history.budget.has_room(self._whose):
                self._hold(size)
            else:
                self._cut(Overloaded("readers that take little hold too much; resume from the last id"))

    def wake(self) -> None:
        """Have `next()` look again, when it is this reader's turn."""
        self._turns.wake(self._woken)

    def end(self, error: BridgeError) -> None:
        """Have `next()` raise this."""
        self._ended = error
        self.wake()

    def _stop_clock(self) -> None:
        if self._returned_at is not None:
            self._own_clock += self._loop.time() - self._returned_at
            self._returned_at = None

    async def _go_on(self) -> list[Item]:
        """Read a page of the past, become live, or wait."""
        if not self.cursor.live and not self._flow.attach(self):
            return await self._turn_page()
        self._wants_page_since = None
        if self.cursor.waiting:
            self._woken.clear()
            await self._woken.wait()
        else:
            await asyncio.sleep(0)  # there is more to look through; others want to get on meanwhile
        return []

    async def _turn_page(self) -> list[Item]:
        """Return the next page of the past; none where all of it is hidden, or where it cannot be read just now."""
        cursor, before = self.cursor, self.cursor.position
        page = await self._read_page(before)
        if page is not None and cursor.position == before:  # the stream has not lost it meanwhile
            items = cursor.turn(page)
            self._hold(_size_of(items))
            if items or cursor.position != before:
                return items
        await asyncio.sleep(RETRY_SECONDS)
        return []

    async def _read_page(self, after: Position) -> Page | None:
        """Return a page, None where there is none just now; raise `Unavailable` where that has been so for long."""
        filters = self.cursor.filters
        until = self._ring.last if self._ring.epoch == after.epoch else 0
        if self._wants_page_since is None:
            self._wants_page_since = self._loop.time()
        patient_until = self._wants_page_since + PATIENCE_SECONDS
        try:
            async with asyncio.timeout_at(patient_until):
                page = await self._history.read(after, until, filters, self._whose)
        except (Unavailable, TimeoutError) as exc:
            if isinstance(exc, Unavailable):
                self._why_none = exc.message
            if self._loop.time() < patient_until:
                return None
            self._history.warn(self._why_none)
            raise Unavailable("what has happened before cannot be read now; come back with the last id") from exc
        self._wants_page_since = None
        return page

    def _cut(self, error: BridgeError) -> None:
        """Have `next()` raise this, and whatever is done with what was returned."""
        self._returned = ()
        self.end(error)
        if self._writing is not None:
            self._writing.reschedule(self._loop.time())

    def _hold(self, size: int) -> None:
        """Count that this reader holds so much that the recent messages do not."""
        self._history.budget.hold(self._whose, size - self._held_bytes)
        self._held_bytes = size


def _size_of(items: Sequence[Item]) -> int:
    return sum(size_of(item) for item in items if isinstance(item, Message))
