"""A reader's position among the messages: decides which come next, from memory or from history, and reports gaps.

Sans-I/O. A cursor is *behind* until the recent messages cover its position. Then it is *live*: each new message is
offered to it, and it remembers the first one that it has not delivered. Nothing is queued for it.

A live reader that falls off the recent messages reads from history, because this process may have received a burst
faster than it delivers. So a reader's pace is measured by its own clock, which runs only while the reader is busy with
delivered messages. It is too slow if it needs more than a minute to reach the end as it was when the minute began; this
repeats until it has caught up. Under an endless flood a reader may stay in history. That costs pages, which are bounded
for all readers of history together.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from agent_api.events.filters import Filters, visible
from agent_api.events.gaps import Gap
from agent_api.events.messages import Message
from agent_api.events.ring import Ring
from protocol.access import Principal
from protocol.errors import Overloaded
from protocol.runtime.streams.positions import Position

MAX_BATCH = 256
MAX_BATCH_BYTES = 64 * 1024
MAX_SCANNED = 1000
MAX_BEHIND_SECONDS = 60.0  # by a reader's own clock


class EventPage(msgspec.Struct, frozen=True):
    """A page of history after a position: messages, all up to `reached`; or a gap.

    `then` is the position to go on from if the stream has ended for good.
    """

    messages: Sequence[Message] = ()
    reached: int = 0
    gap: Gap | None = None
    then: Position | None = None


Item: TypeAlias = Message | Gap


class _Goal(NamedTuple):
    """The position that a slow reader has to reach, and the deadline by its own clock."""

    sequence: int
    until: float


class Cursor:
    """One reader's position."""

    def __init__(self, principal: Principal, filters: Filters, position: Position, gap: Gap | None = None) -> None:
        self.principal = principal
        self.filters = filters
        self.live = False
        self.position = position  # where to resume: everything up to here is delivered, or hidden by the filters
        self._gap = gap
        self._next: int | None = None  # at or before the sequence of the first undelivered message
        self._confirmed = False  # whether the stream has said that it has reached this position
        self._has_caught_up = False
        self._goal: _Goal | None = None  # while it is outrun, until it has caught up

    @property
    def waiting(self) -> bool:
        """Whether there is nothing to deliver."""
        return self._gap is None and self._next is None

    def settle(self, ring: Ring) -> None:
        """Move past new messages if the filters hide all of them."""
        if self.live and self.waiting and ring.last > self.position.sequence:
            self.position = ring.end

    def leave(self, ring: Ring) -> None:
        """Stop being live, because the recent messages are about to be dropped."""
        self.settle(ring)
        self.live, self._next = False, None

    def lose(self, gap: Gap) -> None:
        """Deliver a gap before anything else, because the stream has lost messages, delivered or not."""
        self._gap = gap

    def go_live(self, ring: Ring) -> bool:
        """Become live if the recent messages cover the position. A position ahead of them must be confirmed."""
        epoch, sequence = self.position
        if epoch != ring.epoch or sequence < ring.floor or (sequence > ring.last and not self._confirmed):
            return False
        self.live = True
        self._next = sequence + 1 if sequence < ring.last else None
        self._has_caught_up = False
        if self._next is None:
            self._catch_up()
        return True

    def offer(self, message: Message) -> bool:
        """Note a new message. Return whether there is now something to deliver."""
        if not self.live or self._next is not None or message.position.sequence <= self.position.sequence:
            return False
        if not visible(message, self.principal, self.filters):
            return False
        self._next = message.position.sequence
        self.position = Position(message.position.epoch, self._next - 1)
        return True

    def take(self, ring: Ring, now: float) -> list[Item]:
        """Return the next recent messages, bounded in number and size. If the result is empty, call again.

        `now` is by the reader's own clock, in seconds. Raises `Overloaded` if a slow reader misses its goal; so call
        this between pages, too.
        """
        if self._gap is not None:
            return self._take_gap(self._gap)
        self._require_pace(ring, now)
        items: list[Item] = []
        if self._next is None:
            return items
        if self._next <= ring.floor:
            self._fall_behind(ring, now)
        else:
            self._scan(ring, self._next, items)
        return items

    def turn(self, page: EventPage) -> list[Item]:
        """Move to the end of a page that was read after this position. Return the reader's messages in it."""
        gap = self._gap or page.gap
        if gap is not None:
            return self._take_gap(gap)
        self.position, self._confirmed = page.then or Position(self.position.epoch, page.reached), True
        return [message for message in page.messages if visible(message, self.principal, self.filters)]

    def _take_gap(self, gap: Gap) -> list[Item]:
        self.position, self._confirmed, self._gap, self._goal = gap.position, True, None, None
        return [gap]

    def _scan(self, ring: Ring, first: int, items: list[Item]) -> None:
        size = 0
        for scanned, message in enumerate(ring.since(first - 1)):
            if scanned == MAX_SCANNED or len(items) >= MAX_BATCH or size >= MAX_BATCH_BYTES:
                self._next = message.position.sequence
                self.position = Position(ring.epoch, self._next - 1)
                return
            if visible(message, self.principal, self.filters):
                items.append(message)
                size += len(message.data)
        self.position, self._next = ring.end, None
        self._catch_up()

    def _catch_up(self) -> None:
        self._has_caught_up, self._goal = True, None

    def _fall_behind(self, ring: Ring, now: float) -> None:
        if self._has_caught_up:
            self._goal = _Goal(ring.last, now + MAX_BEHIND_SECONDS)
        self.leave(ring)

    def _require_pace(self, ring: Ring, now: float) -> None:
        """Set the next goal if the last one is reached. Raises `Overloaded` if it is not reached in time."""
        if self._goal is None:
            return
        if self.position.sequence >= self._goal.sequence:
            self._goal = _Goal(ring.last, now + MAX_BEHIND_SECONDS)
        elif now >= self._goal.until:
            raise Overloaded("this reader is too slow for the events; resume from the last id")
