"""The base of WebSockets and HTTP connections: input waits for turns, and memory is counted.

A peer uses memory for waiting input and for unread output. Both count against the share of the user in its token.
"""

import asyncio
from abc import abstractmethod
from typing import cast

from protocol.errors import Overloaded
from protocol.runtime.connections.bounds import ConnectionBounds
from protocol.runtime.connections.reads import SMALL_READ_BYTES, Readable, SmallReads
from protocol.runtime.connections.turns import BUDGET_SECONDS, STRANGERS, Share, Turns, Work
from protocol.shares import Piece

BULK_BYTES = SMALL_READ_BYTES  # a read that is full: the next one waits for a turn, because it may take 0.5 ms


class SharedConnection:
    """A mix-in for an asyncio protocol, which sets `transport`.

    Output is counted only while the transport's buffer is above its high-water mark (32 or 64 KiB), so that a peer that
    reads causes no accounting.
    """

    turns: Turns
    bounds: ConnectionBounds
    transport: asyncio.Transport
    share: Share = STRANGERS
    may_read_much = False
    _input = b""
    _at = 0
    _in_turns = False
    _reading = True
    _sends_bulk = False
    _is_congested = False
    _queued_bytes = 0
    _waiting: Piece | None = None
    _unsent: Piece | None = None

    @abstractmethod
    def take_slice(self) -> bool:
        """Handle the next slice of the input. Return whether more may be handled now."""

    @abstractmethod
    def give_up_message(self, error: Overloaded) -> None:
        """Close, and free the bytes of the unfinished message."""

    @abstractmethod
    def cut_off(self) -> None:
        """Abort a connection whose peer reads too slowly."""

    def read_little(self) -> None:
        """Have the transport read this connection in small pieces."""
        self.transport.set_protocol(SmallReads(cast("Readable", self), self.bounds.read_buffers))

    def _keep(self, data: bytes) -> None:
        """Add to the waiting input."""
        self._sends_bulk = len(data) >= BULK_BYTES
        self._input, self._at = (self._input[self._at :] + data if self._input else data), 0

    def _drop_input(self) -> None:
        self._input, self._at = b"", 0

    def _add_to_turns(self) -> None:
        self._in_turns = True
        self._read(False)
        self.turns.add(self)

    def _read(self, on: bool) -> None:
        """Resume or pause reading from the network. After a full read, resume in a turn of the loop."""
        if on is self._reading or self.transport.is_closing():
            return
        self._reading = on
        if not on:
            self.transport.pause_reading()
        elif self._sends_bulk:
            self.turns.add(Work(self.share, self._resume_in_turn))
        else:
            self.transport.resume_reading()

    def _resume_in_turn(self) -> None:
        """Resume, and use up the turn: a read of 256 KiB follows it, which is not in the pump's hands."""
        if self._reading and not self.transport.is_closing():
            self.may_read_much = True
            self.transport.resume_reading()
            self.turns.charge(BUDGET_SECONDS)

    def _count_input(self, size: int) -> None:
        """Count the bytes of waiting input. Give the message up if there is no room for them."""
        if not size and self._waiting is None:
            return
        try:
            self._waiting = self.bounds.hold_input(self, self._waiting, self.share, size)
        except Overloaded as exc:
            self.give_up_message(exc)

    def _begin_anew(self) -> None:
        """Give the next message its full 30 seconds, because the one before it is complete."""
        # Otherwise a peer that sends without a pause, and so always has an unfinished message, would be closed.
        if self._waiting is not None:
            self.bounds.begin_anew(self)

    def _congest(self, is_congested: bool) -> None:
        """Note that the transport's buffer went above its high-water mark, or below the low one."""
        self._is_congested = is_congested
        self._count_unsent()

    def _count_unsent(self) -> None:
        """Count the bytes of unread output. Cut the peer off if there is no room for them."""
        size = self._queued_bytes + (self.transport.get_write_buffer_size() if self._is_congested else 0)
        if (not size and self._unsent is None) or self.transport.is_closing():
            return
        try:
            self._unsent = self.bounds.hold_output(self, self._unsent, self.share, size)
        except Overloaded:
            self.cut_off()

    def give_output_up(self) -> None:
        """Cut the peer off, because another user needs the room of its unread output."""
        self._unsent = None
        self.cut_off()

    def _let_go_input(self) -> None:
        self.bounds.let_go_input(self, self._waiting)
        self._waiting = None

    def _let_go(self) -> None:
        """Free all input and output of a lost connection."""
        self._drop_input()
        self._let_go_input()
        if self._unsent is not None:
            self._unsent.release()
            self._unsent = None
