"""One reader, as its server holds it: waits for what comes next, wherever that has to be read from."""

import asyncio
import logging

from agent_api.events.cursor import Cursor, Item
from agent_api.events.flow import Flow
from agent_api.events.history import History
from agent_api.events.positions import Position
from protocol.access import Principal
from protocol.errors import BridgeError, Unavailable

RETRY_SECONDS = 0.5

log = logging.getLogger(__name__)


class Reader:
    """Made by `Hub.open()`."""

    def __init__(self, cursor: Cursor, flow: Flow, history: History) -> None:
        self.cursor = cursor
        self._flow = flow
        self._ring = flow.ring
        self._history = history
        self._ended: BridgeError | None = None
        self._woken = asyncio.Event()

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

        May be cancelled without loss. Raises the `BridgeError` that ends this reader: `Overloaded` where it has become
        too slow, or what the hub was closed with.
        """
        while True:
            if self._ended is not None:
                raise self._ended
            items = self.cursor.take(self._ring) or await self._go_on()
            if items:
                return items

    def wake(self) -> None:
        """Have `next()` look again."""
        self._woken.set()

    def end(self, error: BridgeError) -> None:
        """Have `next()` raise this."""
        self._ended = error
        self.wake()

    async def _go_on(self) -> list[Item]:
        """Read a page of the past, become live, or wait."""
        if not self.cursor.live and not self._flow.attach(self):
            return await self._turn_page()
        if self.cursor.waiting:
            self._woken.clear()
            await self._woken.wait()
        else:
            await asyncio.sleep(0)  # there is more to look through; others want to get on meanwhile
        return []

    async def _turn_page(self) -> list[Item]:
        """Return the next page of the past; none where all of it is hidden, or where it cannot be read just now."""
        cursor = self.cursor
        before, subject = cursor.position, cursor.filters.subject(cursor.principal.tenant)
        until = self._ring.last if self._ring.epoch == before.epoch else 0
        try:
            page = await self._history.read(before, until, subject)
        except Unavailable as exc:
            log.debug("cannot read the past: %s", exc.message)
        else:
            if cursor.position == before:  # the stream has not lost it meanwhile
                items = cursor.turn(page)
                if items or cursor.position != before:
                    return items
        await asyncio.sleep(RETRY_SECONDS)
        return []
