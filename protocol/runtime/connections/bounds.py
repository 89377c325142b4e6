"""What the connections of one server may hold together: places, input that waits, and output that is not read.

All three are max-min shares of tenants and users. Input is what was read and is not handled yet: unfinished messages,
and what waits for a turn. It is given back when somebody else needs the room, and an unfinished message after 30
seconds at the latest. Output that a peer leaves unread is given back by cutting the peer off. Long before that,
commands to the clients of the user who leaves most unread are refused. Connections without a session have an eighth of
the places, which the newest ones get.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from protocol.errors import AGENT_LIMIT, Overloaded
from protocol.runtime.connections.turns import Share
from protocol.shares import Piece, Shares

MAX_INPUT_BYTES = 64 * 1024 * 1024
MAX_UNREAD_BYTES = 256 * 1024 * 1024
UNFINISHED_SECONDS = 30.0
STRANGERS_PART = 8  # an eighth of all places is for connections without a session
TICK_SECONDS = 1.0


class Bounded(Protocol):
    """A connection of the server."""

    def give_place_up(self) -> None:
        """End, though there is no session yet."""


class Unfinished(Protocol):
    """A connection that has begun a message."""

    def give_up_message(self, error: Overloaded) -> None:
        """Close, and hold nothing of the message any more."""


class Congested(Protocol):
    """A connection whose peer has not read everything."""

    def give_output_up(self) -> None:
        """Abort: what the peer has not read is lost."""


class ConnectionBounds:
    """The books of one server. Places are counted in connections, input and output in bytes."""

    def __init__(
        self,
        max_connections: int,
        max_of_user: int,
        clock: Callable[[], float],
        max_input_bytes: int = MAX_INPUT_BYTES,
        max_unread_bytes: int = MAX_UNREAD_BYTES,
    ) -> None:
        self._max_strangers = max(1, max_connections // STRANGERS_PART)
        sentence = "too many connections are open; connect again in a moment"
        self._places = Shares(max_connections - self._max_strangers, sentence)
        self._input = Shares(max_input_bytes, "too much input waits; send your message again, whole")
        self._output = Shares(max_unread_bytes, "too much waits for clients that read slowly; try again in a moment")
        self._max_of_user = max_of_user
        self._clock = clock
        self._of_user: Counter[Share] = Counter()
        self._strangers: dict[Bounded, None] = {}  # the oldest first
        self._begun: dict[Unfinished, float] = {}

    def counters(self) -> dict[str, int]:
        """Return how many connections there are, and how full what they share is."""
        shares = {"connections": self._places, "input": self._input, "output": self._output}
        used = {f"sharesUsedPercent:{name}": each.used_percent for name, each in shares.items()}
        return {"connectionsOpen": len(self._strangers) + self._of_user.total(), **used}

    def connections_of(self, share: Share) -> int:
        """Return how many connections with a session a user has."""
        return self._of_user[share]

    def take_in(self, connection: Bounded) -> None:
        """Count a connection without a session; the oldest one gives its place up if there are too many.

        An application that means to connect has its session within milliseconds.
        """
        if len(self._strangers) >= self._max_strangers:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.give_place_up()
        self._strangers[connection] = None

    def admit(self, connection: Bounded, share: Share) -> Piece:
        """Return the place of a connection that gets a session; it is no stranger any more.

        Raises `Overloaded` if the user has too many, or the tenant keeps its share of all places already.
        """
        if self._of_user[share] >= self._max_of_user:
            sentence = f"this user has {self._max_of_user} connections open here; close one of them"
            raise Overloaded(sentence, details={"limit": AGENT_LIMIT})
        place = self._places.ask(share, 1)
        self._strangers.pop(connection, None)
        self._of_user[share] += 1
        return place

    def leave(self, connection: Bounded, place: Piece | None, share: Share) -> None:
        """Count a connection no more; without a `place` it was a stranger's."""
        self._strangers.pop(connection, None)
        if place is not None:
            place.release()
            self._of_user[share] -= 1
            if not self._of_user[share]:
                del self._of_user[share]

    def hold_input(self, connection: Unfinished, piece: Piece | None, share: Share, size: int) -> Piece | None:
        """Count what a connection holds of messages that are not whole; return its piece, None for nothing.

        Raises `Overloaded` if there is no room for so much.
        """
        if piece is None:
            if not size:
                return None
            piece = self._input.ask(share, size, connection.give_up_message)
            self._begun[connection] = self._clock()
        elif size:
            piece.grow(size - piece.size)
        else:
            self.let_go_input(connection, piece)
            return None
        return piece

    def begin_anew(self, connection: Unfinished) -> None:
        """Note that a message is whole: what a connection still holds is of the next one, which begins now."""
        if self._begun.pop(connection, None) is not None:
            self._begun[connection] = self._clock()

    def let_go_input(self, connection: Unfinished, piece: Piece | None) -> None:
        """Count no more of a connection's messages."""
        self._begun.pop(connection, None)
        if piece is not None:
            piece.release()

    def hold_output(self, connection: Congested, piece: Piece | None, share: Share, size: int) -> Piece | None:
        """Count the output that a peer has not read; return its piece, None for nothing.

        If there is no room, the user who leaves most unread loses a connection. Raises `Overloaded` if it is this one.
        """
        if piece is None:
            return self._output.ask(share, size, lambda _: connection.give_output_up()) if size else None
        if size:
            piece.grow(size - piece.size)
            return piece
        piece.release()
        return None

    def require_output_share(self, share: Share) -> None:
        """Raise `Overloaded` if a user, or its tenant, leaves as much unread as its share of all output."""
        self._output.require_share(share)

    async def run_clock(self) -> None:
        """Give up messages that are not whole in 30 seconds, for ever."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            since = self._clock() - UNFINISHED_SECONDS
            for connection, begun in list(self._begun.items()):
                if begun > since:
                    break  # a dict keeps its order: the others have begun later
                sentence = f"a message has to be whole in {UNFINISHED_SECONDS:g} seconds"
                connection.give_up_message(Overloaded(sentence, details={"limit": AGENT_LIMIT}))
