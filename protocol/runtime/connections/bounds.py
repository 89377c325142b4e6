"""The bounds of all connections of one server: their number, the bytes of waiting input, and of unread output.

Each is shared max-min fair, among tenants and then among the users of a tenant.

- Connections: an eighth of the places is for those without a session. If they are full, the oldest one is closed.
- Input: bytes that are read and not handled, in unfinished messages or waiting for a turn. An unfinished message is
  given up if another user needs the room, or after 30 seconds.
- Output: bytes that a peer has not read. If another user needs the room, the peer is cut off. Long before that,
  commands to the user with the most unread output are refused.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from protocol.errors import AGENT_LIMIT, Overloaded
from protocol.runtime.connections.reads import ReadBuffers
from protocol.runtime.connections.turns import Share
from protocol.runtime.log_throttle import LogThrottle
from protocol.shares import Piece, Shares

MAX_INPUT_BYTES = 64 * 1024 * 1024
MAX_UNREAD_BYTES = 256 * 1024 * 1024
UNFINISHED_SECONDS = 30.0
STRANGERS_PART = 8  # an eighth of all places is for connections without a session
TICK_SECONDS = 1.0
LOG_SECONDS = 10.0

log = logging.getLogger(__name__)


class Bounded(Protocol):
    """A connection of the server."""

    def give_place_up(self) -> None:
        """End the connection, which has no session yet."""


class Unfinished(Protocol):
    """A connection that has begun a message."""

    def give_up_message(self, error: Overloaded) -> None:
        """Close, and free the bytes of the message."""


class Congested(Protocol):
    """A connection whose peer has not read everything."""

    def give_output_up(self) -> None:
        """Abort the connection. The unread output is lost."""


class ConnectionBounds:
    """Accounts for the connections of one server. Places are counted in connections, input and output in bytes."""

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
        self._input = Shares(max_input_bytes, "too much input waits; send your message again in one piece")
        self._output = Shares(max_unread_bytes, "too much output waits for slow readers; try again in a moment")
        self.read_buffers = ReadBuffers()
        self._max_of_user = max_of_user
        self._clock = clock
        self._of_user: Counter[Share] = Counter()
        self._strangers: dict[Bounded, None] = {}  # the oldest first
        self._begun: dict[Unfinished, float] = {}
        self._given_up = 0
        self._given_up_lines = LogThrottle(LOG_SECONDS, clock)

    def counters(self) -> dict[str, int]:
        """Return the counters of `/metrics`: open connections, and the percentage in use of each shared bound."""
        shares = {"connections": self._places, "input": self._input, "output": self._output}
        used = {f"sharesUsedPercent:{name}": each.used_percent for name, each in shares.items()}
        return {"connectionsOpen": len(self._strangers) + self._of_user.total(), **used}

    def connections_of(self, share: Share) -> int:
        """Return the number of a user's connections with a session."""
        return self._of_user[share]

    def take_in(self, connection: Bounded) -> None:
        """Count a connection without a session. If there are too many, the oldest one is closed."""
        # The oldest is the least likely to be honest: an application has its session within milliseconds.
        if len(self._strangers) >= self._max_strangers:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.give_place_up()
            self._given_up += 1
        self._strangers[connection] = None

    def admit(self, connection: Bounded, share: Share) -> Piece:
        """Return a place for a connection that gets a session.

        Raises `Overloaded` if the user has too many connections, or its tenant has used up its share of all places.
        """
        if self._of_user[share] >= self._max_of_user:
            sentence = f"this user has {self._max_of_user} connections open here; close one of them"
            raise Overloaded(sentence, details={"limit": AGENT_LIMIT})
        place = self._places.ask(share, 1)
        self._strangers.pop(connection, None)
        self._of_user[share] += 1
        return place

    def leave(self, connection: Bounded, place: Piece | None, share: Share) -> None:
        """Stop counting a connection. Without a `place` it had no session."""
        self._strangers.pop(connection, None)
        if place is not None:
            place.release()
            self._of_user[share] -= 1
            if not self._of_user[share]:
                del self._of_user[share]

    def hold_input(self, connection: Unfinished, piece: Piece | None, share: Share, size: int) -> Piece | None:
        """Count `size` bytes of a connection's waiting input. Return its piece of the share, or None for no bytes.

        Raises `Overloaded` if there is no room.
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
        """Note that a message is complete. The next one, if its first bytes are here, has 30 seconds from now on."""
        if self._begun.pop(connection, None) is not None:
            self._begun[connection] = self._clock()

    def let_go_input(self, connection: Unfinished, piece: Piece | None) -> None:
        """Free a connection's piece of the input."""
        self._begun.pop(connection, None)
        if piece is not None:
            piece.release()

    def hold_output(self, connection: Congested, piece: Piece | None, share: Share, size: int) -> Piece | None:
        """Count `size` bytes of a peer's unread output. Return its piece of the share, or None for no bytes.

        If there is no room, a connection of the user with the most unread output is cut off. Raises `Overloaded` if
        that is this one.
        """
        if piece is None:
            return self._output.ask(share, size, lambda _: connection.give_output_up()) if size else None
        if size:
            piece.grow(size - piece.size)
            return piece
        piece.release()
        return None

    def require_output_share(self, share: Share) -> None:
        """Raise `Overloaded` if the unread output of a user, or of its tenant, has used up its share."""
        self._output.require_share(share)

    async def run_clock(self) -> None:
        """Give up each message that is unfinished after 30 seconds, and log how many places were given up, for ever."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._give_up_unfinished()
            if self._given_up and self._given_up_lines.due():
                log.warning(
                    "closed %d connections that had no session yet: newer ones came, and %d may wait for one; raise "
                    "AGENTBRIDGE_MAX_CONNECTIONS and the limit of open files (ulimit -n)",
                    self._given_up,
                    self._max_strangers,
                )
                self._given_up = 0

    def _give_up_unfinished(self) -> None:
        # Not in the loop that sleeps: its variable would hold the last connection after its end.
        since = self._clock() - UNFINISHED_SECONDS
        for connection, begun in list(self._begun.items()):
            if begun > since:
                break  # a dict keeps its order: the others have begun later
            sentence = f"a message must be complete within {UNFINISHED_SECONDS:g} seconds"
            connection.give_up_message(Overloaded(sentence, details={"limit": AGENT_LIMIT}))
