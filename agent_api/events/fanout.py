"""The fan-out: the ring of recent messages, and the readers to be woken for a new one. Sans-I/O."""

import logging
from collections import defaultdict
from typing import Protocol

from agent_api.events.cursor import Cursor
from agent_api.events.gaps import unknown
from agent_api.events.messages import Message
from agent_api.events.ring import Ring
from protocol.errors import BridgeError
from protocol.runtime.streams.jetstream import StreamInfo
from protocol.runtime.streams.positions import Position, epoch_of

MAX_BEHIND = 10_000  # messages; readers that would have to skip more at once read them from history

log = logging.getLogger(__name__)
_Where = tuple[str, str | None]  # a tenant, and one of its clients or all


class Listener(Protocol):
    """A reader with a position among the messages. It is woken when a message comes for it."""

    cursor: Cursor

    def wake(self) -> None:
        """Check for messages again."""

    def end(self, error: BridgeError) -> None:
        """End the reader with this error."""

    def count_held(self) -> None:
        """Count the messages that only this reader holds, because the ring has dropped them."""


class Fanout:
    """The recent messages and the listeners that wait for the next."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.listeners: set[Listener] = set()
        self._live: defaultdict[_Where, set[Listener]] = defaultdict(set)

    def add(self, listener: Listener) -> None:
        """Add a listener, which from now on learns of the stream's losses."""
        self.listeners.add(listener)

    def attach(self, listener: Listener) -> bool:
        """Wake a listener from now on if the recent messages cover its position. Return whether they do."""
        if not listener.cursor.go_live(self.ring):
            return False
        self._live[_where(listener)].add(listener)
        return True

    def remove(self, listener: Listener) -> None:
        """Remove a listener."""
        self.listeners.discard(listener)
        where = _where(listener)
        self._live[where].discard(listener)
        if not self._live[where]:
            del self._live[where]

    def begin(self, info: StreamInfo) -> None:
        """Go on at the end of the ring, or at the stream's end if the stream does not continue the ring."""
        ring, end = self.ring, Position(epoch_of(info.created), info.state.last_seq)
        leads_on = info.state.first_seq - 1 <= ring.last <= end.sequence <= ring.last + MAX_BEHIND
        if ring.epoch == end.epoch and leads_on:
            return
        self._start_over(end)
        for cursor in (listener.cursor for listener in self.listeners):
            if cursor.position.epoch == end.epoch and cursor.position.sequence > end.sequence:
                cursor.lose(unknown(end))  # the stream was set back, and its next messages have these sequences again

    def deliver(self, sequence: int, message: Message | None) -> None:
        """Add the message at a sequence of the stream, or None if it is not one of ours."""
        if sequence > self.ring.last + 1:
            self._start_over(Position(self.ring.epoch, sequence - 1))
        self.ring.append(sequence, message)
        if message is not None:
            tenant, client_id = message.client.tenant, message.client.client_id
            self._offer(message, (tenant, client_id))
            self._offer(message, (tenant, None))

    def count_held(self) -> None:
        """Let every listener count the messages that only it holds. Call this regularly."""
        for listener in self.listeners:
            listener.count_held()

    def _offer(self, message: Message, where: _Where) -> None:
        for listener in self._live.get(where, ()):
            if listener.cursor.offer(message):
                listener.wake()

    def _start_over(self, end: Position) -> None:
        """Begin again at `end`. Every reader goes on from history after its own position."""
        if self.ring.epoch:
            log.warning(
                "cannot follow events from %s on; readers go on in the stream, and here from %s", self.ring.end, end
            )
        for listener in self.listeners:
            listener.cursor.leave(self.ring)
            listener.wake()
        self._live.clear()
        self.ring.reset(end)


def _where(listener: Listener) -> _Where:
    cursor = listener.cursor
    return cursor.principal.tenant, cursor.filters.client_id
