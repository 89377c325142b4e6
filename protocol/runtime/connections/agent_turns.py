"""Fair turns for the messages of agents on NATS: tenants in turn, then the agents of a tenant in turn.

The messages of all agents arrive on one connection. The first 16 of an agent in a turn of the event loop are handled
at once. Its further ones wait in a queue of their own, in order, while the messages behind them are read. The memory of
the queues is shared out in bytes. An agent whose queue has used up its share is refused.
"""

from collections import Counter
from collections.abc import Callable

from protocol.records import Rate
from protocol.runtime.connections.turns import Share, Turns, Work
from protocol.runtime.token_buckets import TokenBuckets
from protocol.shares import Shares

AT_ONCE = 16  # messages of one agent in a turn of the loop: 0.8 ms of commands
MAX_WAITING_BYTES = 4 * 1024 * 1024
MESSAGE_BYTES = 1024  # memory of a waiting message besides its body
MAX_AGENTS = 10_000
REFUSALS = Rate(per_second=200, burst=500)  # answered refusals of one agent; answering all costs as much as serving it


class AgentTurns:
    """The messages of known agents to one process. `call_soon` is the loop's."""

    def __init__(
        self,
        turns: Turns,
        call_soon: Callable[[Callable[[], None]], object],
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self._turns = turns
        self._call_soon = call_soon
        self._begun: dict[Share, int] = {}  # in this turn of the loop
        self._waiting: Counter[Share] = Counter()
        self._places = Shares(max_waiting_bytes, "too many of your messages wait here; try again in a moment")
        self._refusals = TokenBuckets(MAX_AGENTS)

    @property
    def used_percent(self) -> int:
        """The used part of what may wait, in per cent."""
        return self._places.used_percent

    def at_once(self, share: Share) -> bool:
        """Tell whether to handle a message now, and count it against the agent's 16 of this turn of the loop."""
        begun = self._begun.get(share, 0)
        if begun >= AT_ONCE or self.waits(share):
            return False
        if not self._begun:
            self._call_soon(self._begun.clear)
        self._begun[share] = begun + 1
        return True

    def waits(self, share: Share) -> bool:
        """Tell whether messages of an agent wait. A later one must not overtake them."""
        return bool(self._waiting) and share in self._waiting

    def later(self, share: Share, size: int, act: Callable[[], None]) -> None:
        """Call `act` when the agent has its turn, for a message of `size` bytes. `act` must not raise.

        Raises `Overloaded` if the agent's share is used up.
        """
        place = self._places.ask(share, size + MESSAGE_BYTES)
        self._waiting[share] += 1

        def take_turn() -> None:
            place.release()
            self._waiting[share] -= 1
            if not self._waiting[share]:
                del self._waiting[share]
            act()

        self._turns.add(Work(share, take_turn))

    def answers_refusal(self, share: Share, now: float) -> bool:
        """Tell whether to answer a refused message. If not, drop it."""
        return not self._refusals.draw(share, REFUSALS, now)
