"""Whose messages are handled at once, whose wait in line, and who is refused."""

from collections.abc import Callable

import pytest

from protocol.errors import Overloaded
from protocol.runtime.connections.agent_turns import AT_ONCE, MESSAGE_BYTES, REFUSALS, AgentTurns
from protocol.runtime.connections.turns import Share, Turns

FLOODER, COLLEAGUE, NEIGHBOUR = ("flood", "a"), ("flood", "b"), ("calm", "n")


class Stage:
    """The agents of a process whose loop is turned by hand; each slice uses up the budget of its turn."""

    def __init__(self, waiting: int) -> None:
        self.soon: list[Callable[[], None]] = []
        self.done: list[tuple[Share, int]] = []
        self._now = 0.0
        self.agents = AgentTurns(Turns(self.soon.append, self._clock), self.soon.append, waiting * MESSAGE_BYTES)

    def _clock(self) -> float:
        self._now += 1
        return self._now

    def send(self, share: Share, number: int) -> None:
        """Send a message as a process takes it."""
        if self.agents.at_once(share):
            self.done.append((share, number))
        else:
            self.agents.later(share, 0, lambda: self.done.append((share, number)))

    def turn(self) -> None:
        """Let the loop turn once."""
        soon, self.soon[:] = list(self.soon), []
        for each in soon:
            each()


def test_agent_with_a_few_messages_waits_for_nobody() -> None:
    stage = Stage(100)
    for turn in range(3):
        for number in range(AT_ONCE):
            stage.send(FLOODER, turn * AT_ONCE + number)
        stage.turn()
    assert stage.done == [(FLOODER, number) for number in range(3 * AT_ONCE)]


def test_neighbour_is_handled_at_once_behind_a_flood() -> None:
    stage = Stage(100)
    for number in range(50):
        stage.send(FLOODER, number)
    stage.send(NEIGHBOUR, 0)
    stage.send(COLLEAGUE, 0)
    assert stage.done == [*((FLOODER, number) for number in range(AT_ONCE)), (NEIGHBOUR, 0), (COLLEAGUE, 0)]


def test_messages_of_an_agent_keep_their_order() -> None:
    """A cancel must not overtake its command."""
    stage = Stage(100)
    for number in range(20):
        stage.send(FLOODER, number)
    stage.turn()
    stage.send(FLOODER, 20)
    for _ in range(30):
        stage.turn()
    assert stage.done == [(FLOODER, number) for number in range(21)]


def test_lines_of_tenants_and_agents_take_turns() -> None:
    stage = Stage(100)
    for share in (FLOODER, COLLEAGUE, NEIGHBOUR):
        for number in range(AT_ONCE + 4):
            stage.send(share, number)
    begun = len(stage.done)
    for _ in range(6):
        stage.turn()
    turns = [share for share, _ in stage.done[begun:]]
    assert turns[:4] in ([FLOODER, NEIGHBOUR, COLLEAGUE, NEIGHBOUR], [NEIGHBOUR, FLOODER, NEIGHBOUR, COLLEAGUE])


def test_agent_with_its_share_waiting_is_refused_alone_and_told_so_up_to_a_rate() -> None:
    stage = Stage(16)
    for number in range(AT_ONCE + 9):  # three quarters of three quarters, for those who may come
        stage.send(FLOODER, number)
    with pytest.raises(Overloaded) as refused:
        stage.send(FLOODER, 20)
    assert refused.value.details == {"limit": "agent"}
    for number in range(AT_ONCE + 1):
        stage.send(NEIGHBOUR, number)
    told = [stage.agents.answers_refusal(FLOODER, 0.0) for _ in range(int(REFUSALS.burst) + 5)]
    assert told == [True] * int(REFUSALS.burst) + [False] * 5
    assert stage.agents.answers_refusal(NEIGHBOUR, 0.0)
