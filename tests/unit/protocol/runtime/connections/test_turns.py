"""Turns of the loop: who is handled when, with a loop and a clock of the test's."""

from collections import Counter
from collections.abc import Callable

import pytest

from protocol.runtime.connections.turns import AT_ONCE_SECONDS, BUDGET_SECONDS, STRANGERS, Share, Turns

SLICE_SECONDS = BUDGET_SECONDS / 8


class Loop:
    """A loop whose clock moves with the work that is done."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ready: list[Callable[[], None]] = []
        self.turns = Turns(self.ready.append, lambda: self.now)
        self.holds: list[float] = []

    def turn(self) -> None:
        """Call what is ready, and note how long that took."""
        started, ready = self.now, self.ready[:]
        self.ready.clear()
        for call in ready:
            call()
        self.holds.append(self.now - started)


class Input:
    """A socket with so many slices of input, or input without an end."""

    def __init__(self, loop: Loop, share: Share, slices: int | None = None, log: list[Share] | None = None) -> None:
        self.share = share
        self.left = slices
        self.handled_at: list[float] = []
        self._loop = loop
        self._log = log if log is not None else []

    def take_slice(self) -> bool:
        self._loop.now += SLICE_SECONDS
        self.handled_at.append(self._loop.now)
        self._log.append(self.share)
        if self.left is None:
            return True
        self.left -= 1
        return self.left > 0


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.mark.parametrize("flooders", [1, 100])
def test_flood_holds_the_loop_for_no_more_than_the_budget_and_a_slice(loop: Loop, flooders: int) -> None:
    for _ in range(flooders):
        loop.turns.add(Input(loop, STRANGERS))
    for _ in range(50):
        loop.turn()
    assert max(loop.holds) <= BUDGET_SECONDS + SLICE_SECONDS


@pytest.mark.parametrize("flooders", [1, 100])
def test_neighbour_is_handled_after_one_slice_of_each_other_tenant(loop: Loop, flooders: int) -> None:
    for _ in range(flooders):
        loop.turns.add(Input(loop, ("flood", "f")))
    loop.turn()
    neighbour, began = Input(loop, ("calm", "c"), 1), loop.now
    loop.turns.add(neighbour)
    loop.turn()
    assert neighbour.handled_at[0] - began == pytest.approx(2 * SLICE_SECONDS)


def test_tenants_take_turns_then_users_then_sockets(loop: Loop) -> None:
    log: list[Share] = []
    shares = [("a", "x")] * 6 + [("a", "y")] + [("b", "z")]
    for share in shares:
        loop.turns.add(Input(loop, share, None, log))
    while len(log) < 400:
        loop.turn()
    counted = Counter(log[:400])
    assert counted == {("a", "x"): 100, ("a", "y"): 100, ("b", "z"): 200}


def test_input_is_handled_in_its_order_and_once(loop: Loop) -> None:
    one = Input(loop, ("a", "x"), 20)
    loop.turns.add(one)
    while loop.ready:
        loop.turn()
    assert (one.left, len(one.handled_at)) == (0, 20)


def test_source_that_adds_another_one_while_it_is_handled_loses_nothing(loop: Loop) -> None:
    late = Input(loop, ("late", "l"), 1)

    class Adding(Input):
        def take_slice(self) -> bool:
            if not late.handled_at and self.left == 3:
                loop.turns.add(late)
            return super().take_slice()

    adding = Adding(loop, ("a", "x"), 3)
    loop.turns.add(adding)
    while loop.ready:
        loop.turn()
    assert (adding.left, late.left) == (0, 0)


def test_fault_of_one_source_leaves_the_others_their_turns(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Input):
        def take_slice(self) -> bool:
            raise RuntimeError("a fault of ours")

    good = Input(loop, ("a", "x"), 2)
    loop.turns.add(Faulty(loop, ("a", "x")))
    loop.turns.add(good)
    while loop.ready:
        loop.turn()
    assert good.left == 0
    assert "could not be handled" in caplog.text


def test_input_is_handled_where_it_arrives_while_no_other_tenant_waits_and_the_turn_has_time(loop: Loop) -> None:
    ours, colleague = ("a", "x"), ("a", "y")
    assert loop.turns.at_once(ours)
    loop.now += AT_ONCE_SECONDS / 2
    assert loop.turns.at_once(ours)
    loop.now += AT_ONCE_SECONDS
    assert not loop.turns.at_once(ours)
    loop.turn()
    loop.turns.add(Input(loop, colleague))
    assert loop.turns.at_once(ours)
    loop.turns.add(Input(loop, STRANGERS))
    assert not loop.turns.at_once(ours)
    assert not loop.turns.at_once(STRANGERS)
