"""Max-min shares as a simulation: hoarders who take whatever they get, and newcomers who want their part of it."""

import contextlib
import itertools
import random
from collections import Counter
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.memory import bytes_left_by

from protocol.errors import Overloaded
from protocol.shares import Holder, Piece, Shares

CAPACITY = 12_800
TENANTS = [f"t{number}" for number in range(100)]


class Simulation:
    """Holders of one capacity, counted a second time: every live piece by its number, in the order of asking."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.shares = Shares(capacity, "full")
        self.pieces: dict[int, tuple[Holder, Piece]] = {}
        self.given_back: list[tuple[int, str]] = []
        self._numbers = itertools.count()
        self._forgotten = 0

    def ask(self, holder: Holder, size: int = 1, *, keep: bool = False) -> str | None:
        """Ask for a piece; return the limit that was used up, None if it was granted."""
        number = next(self._numbers)

        def give_back(error: Overloaded) -> None:
            self.given_back.append((number, error.details["limit"]))

        try:
            piece = self.shares.ask(holder, size, None if keep else give_back)
        except Overloaded as exc:
            return str(exc.details["limit"])
        self._forget_given_back()
        self.pieces[number] = holder, piece
        return None

    def grow(self, number: int, size: int) -> bool:
        """Have a piece grow; return whether there was room."""
        try:
            self.pieces[number][1].grow(size)
        except Overloaded:
            return False
        self._forget_given_back()
        return True

    def keep(self, number: int) -> bool:
        """Keep a piece; return whether its holder may."""
        try:
            self.pieces[number][1].keep()
        except Overloaded:
            return False
        return True

    def take_all(self, holder: Holder, size: int = 1, *, keep: bool = False) -> int:
        """Ask until that is refused; return what the holder holds then."""
        while self.ask(holder, size, keep=keep) is None:
            pass
        return self.of_sub(holder)

    def of_tenant(self, tenant: str) -> int:
        return sum(piece.size for (name, _), piece in self.pieces.values() if name == tenant)

    def of_sub(self, holder: Holder) -> int:
        return sum(piece.size for owner, piece in self.pieces.values() if owner == holder)

    def of_all(self) -> int:
        return sum(piece.size for _, piece in self.pieces.values())

    def release_all(self) -> None:
        for _, piece in self.pieces.values():
            piece.release()
            piece.release()
        self.pieces.clear()

    def _forget_given_back(self) -> None:
        for number, _ in self.given_back[self._forgotten :]:
            self.pieces.pop(number, None)
        self._forgotten = len(self.given_back)


# --- what can be given back ---


def test_lone_tenant_may_hold_everything_that_can_be_given_back() -> None:
    assert Simulation().take_all(("a", "x")) == CAPACITY


@pytest.mark.parametrize("size", [1, 64])
def test_newcomer_gets_its_share_beside_a_hundred_hoarders(size: int) -> None:
    simulation = Simulation()
    for tenant in TENANTS:
        simulation.take_all((tenant, "x"), size)
    assert simulation.of_all() == CAPACITY
    assert simulation.take_all(("newcomer", "x"), size) > CAPACITY / 101 - size - 1
    assert {limit for _, limit in simulation.given_back} == {"tenant"}


def test_tenants_converge_to_equal_shares_whatever_the_number_of_their_subs() -> None:
    simulation, chance = Simulation(), random.Random(1)
    for _ in range(40_000):
        tenant = chance.randrange(100)
        simulation.ask((TENANTS[tenant], str(chance.randrange(1 + 3 * tenant))))
    assert {simulation.of_tenant(tenant) for tenant in TENANTS} == {CAPACITY // 100}


def test_sub_gets_its_share_beside_those_of_its_tenant_and_takes_nothing_from_others() -> None:
    simulation = Simulation()
    for holder in (("a", "x"), ("b", "x")):
        simulation.take_all(holder)
    assert simulation.take_all(("a", "y")) == CAPACITY // 4
    assert simulation.of_tenant("b") == CAPACITY // 2


def test_newest_piece_of_the_largest_sub_of_the_largest_tenant_is_given_back() -> None:
    simulation = Simulation(100)
    simulation.ask(("a", "x"), 15)
    simulation.ask(("a", "y"), 10)
    simulation.ask(("a", "y"), 20)
    simulation.ask(("b", "x"), 40)
    simulation.ask(("a", "x"), 10)
    simulation.ask(("a", "y"), 5)
    assert simulation.given_back == []
    assert simulation.ask(("c", "x"), 5) is None
    assert simulation.given_back == [(5, "tenant")]  # of a: 60 against 40, of y: 35 against 25, 5 is newer than 2
    assert simulation.ask(("c", "x"), 5) is None
    assert simulation.given_back == [(5, "tenant"), (2, "tenant")]
    assert simulation.ask(("c", "x"), 16) is None
    assert simulation.given_back == [(5, "tenant"), (2, "tenant"), (3, "tenant")]  # b holds 40, a 35


def test_refused_request_takes_nothing_from_anybody() -> None:
    simulation = Simulation(100)
    for _ in range(10):
        simulation.ask(("a", "x"), 10)
    assert simulation.ask(("b", "x"), 60) == "agent"
    assert (simulation.given_back, simulation.of_tenant("a"), simulation.shares.held) == ([], 100, 100)
    assert simulation.ask(("b", "x"), 50) is None
    assert simulation.given_back == [(number, "tenant") for number in (9, 8, 7, 6, 5)]


def test_piece_that_grows_takes_room_from_larger_holders_and_stays_as_it_was_if_there_is_none() -> None:
    simulation = Simulation(100)
    simulation.ask(("b", "x"), 10)
    for _ in range(9):
        simulation.ask(("a", "x"), 10)
    assert simulation.grow(0, 35)
    assert simulation.given_back == [(number, "tenant") for number in (9, 8, 7, 6)]
    assert not simulation.grow(0, 35)
    assert (simulation.of_tenant("b"), simulation.of_tenant("a")) == (45, 50)


def test_piece_that_shrinks_leaves_room() -> None:
    simulation = Simulation(100)
    simulation.ask(("a", "x"), 100)
    simulation.pieces[0][1].shrink(60)
    assert simulation.ask(("a", "x"), 60) is None


def test_limit_says_whose_share_was_used_up() -> None:
    simulation = Simulation(100)
    simulation.ask(("a", "x"), 40)
    simulation.ask(("a", "y"), 10)
    simulation.ask(("b", "x"), 50)
    assert simulation.ask(("a", "x")) == "agent"
    assert simulation.ask(("a", "y"), 31) == "agent"
    assert simulation.ask(("a", "y"), 11) is None
    assert simulation.given_back == [(0, "agent")]


def test_tenant_within_its_share_hears_that_the_process_is_full() -> None:
    simulation = Simulation(100)
    simulation.ask(("a", "x"), 90, keep=True)
    simulation.ask(("b", "x"), 10)
    assert simulation.ask(("b", "y"), 20) == "process"


# --- what is kept ---


def test_lone_tenant_may_keep_three_quarters() -> None:
    simulation = Simulation()
    kept = 0
    for sub in range(300):
        kept += simulation.take_all(("a", str(sub)), keep=True)
    assert kept == CAPACITY * 3 // 4


def test_lone_sub_leaves_a_quarter_of_its_tenants_share_to_subs_that_come_later() -> None:
    simulation = Simulation()
    assert simulation.take_all(("a", "x"), keep=True) == CAPACITY * 9 // 16
    assert simulation.take_all(("a", "y"), keep=True) >= CAPACITY * 3 // 4 // 64
    assert simulation.take_all(("a", "z"), keep=True) >= CAPACITY * 3 // 4 // 64


def test_tenant_of_many_subs_takes_nothing_from_the_floor_of_another() -> None:
    simulation = Simulation()
    for sub in range(300):
        simulation.take_all(("a", str(sub)), keep=True)
    for tenant in TENANTS[:10]:
        assert simulation.take_all((tenant, "x"), keep=True) >= CAPACITY // 64 * 9 // 16


def test_kept_pieces_are_granted_out_of_what_larger_tenants_can_give_back() -> None:
    simulation = Simulation()
    simulation.take_all(("a", "x"))
    assert simulation.take_all(("b", "x"), keep=True) >= CAPACITY // 2 * 3 // 4
    assert simulation.of_all() == CAPACITY


def test_kept_piece_is_not_given_back() -> None:
    simulation = Simulation(100)
    for number in range(10):
        simulation.ask(("a", "x"), 10)
        assert simulation.keep(number) == (number < 6)
    for _ in range(10):
        simulation.ask(("b", "x"), 10)
    assert simulation.given_back == [(number, "tenant") for number in (9, 8, 7, 6)]


def test_single_piece_may_be_larger_than_a_share() -> None:
    simulation = Simulation()
    for tenant in TENANTS:
        simulation.ask((tenant, "x"), keep=True)
    assert simulation.ask(("a", "x"), CAPACITY // 10, keep=True) is None
    assert simulation.ask(("a", "x"), keep=True) == "agent"


# --- whatever happens ---

HOLDERS = st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz"))
ASKS = st.tuples(st.sampled_from(["ask", "ask kept"]), HOLDERS, st.integers(1, 20))
CHANGES = st.tuples(st.sampled_from(["grow", "shrink", "keep", "release"]), st.integers(0, 99), st.integers(1, 20))


class Checked(Simulation):
    """A simulation that checks every piece that is given back against its own books."""

    def step(self, what: str, who: Holder | int, size: int) -> None:
        """Do one step, and check who has given back for it."""
        before = dict(self.pieces)
        held = {number: piece.size for number, (_, piece) in before.items()}
        kept = {number for number, (_, piece) in before.items() if piece.give_back is None}
        self.given_back.clear()
        self._forgotten = 0
        asker = self._do(what, who, size)
        for number, limit in self.given_back:
            assert number not in kept
            assert asker is not None
            self._check_given_back(number, limit, asker, size, {each: before[each][0] for each in held}, held, kept)
            del held[number]

    def _do(self, what: str, who: Holder | int, size: int) -> Holder | None:
        """Return the holder that asked for something."""
        if not isinstance(who, int):
            self.ask(who, size, keep=what == "ask kept")
            return who
        if not self.pieces:
            return None
        number = list(self.pieces)[who % len(self.pieces)]
        holder, piece = self.pieces[number]
        match what:
            case "grow":
                self.grow(number, size)
            case "shrink":
                piece.shrink(min(size, piece.size - 1))
            case "keep":
                self.keep(number)
            case "release":
                self.pieces.pop(number)[1].release()
        return holder

    def _check_given_back(
        self,
        number: int,
        limit: str,
        asker: Holder,
        size: int,
        holders: dict[int, Holder],
        held: dict[int, int],
        kept: set[int],
    ) -> None:
        tenants, subs = Counter[str](), Counter[Holder]()
        for each, amount in held.items():
            tenants[holders[each][0]] += amount
            subs[holders[each]] += amount
        assert sum(held.values()) + size > self.capacity  # nobody gives back while there is room
        able = {holders[each] for each in held if each not in kept}
        owner = holders[number]
        if limit == "tenant":
            assert tenants[owner[0]] == max(tenants[tenant] for tenant, _ in able)
            assert tenants[owner[0]] > tenants[asker[0]] + size
            if not kept:
                assert tenants[owner[0]] > self.capacity / len({*tenants, asker[0]})  # it was above its fair share
        else:
            assert owner[0] == asker[0]
            assert subs[owner] > subs[asker] + size
        assert subs[owner] == max(subs[each] for each in able if each[0] == owner[0])
        assert number == max(each for each in held if holders[each] == owner and each not in kept)


@given(steps=st.lists(ASKS | CHANGES, max_size=120))
def test_books_are_true_and_only_those_give_back_who_hold_more(steps: list[tuple[str, Holder | int, int]]) -> None:
    simulation = Checked(100)
    for step in steps:
        simulation.step(*step)
        assert simulation.shares.held == simulation.of_all() <= 100
        assert all(piece.held for _, piece in simulation.pieces.values())
    simulation.release_all()
    assert simulation.shares.held == 0
    for keep in (True, False):
        assert simulation.take_all(("new", "x"), keep=keep) == Simulation(100).take_all(("new", "x"), keep=keep)
        simulation.release_all()


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=60), seed=st.integers(0, 999))
def test_each_piece_ends_once(sizes: list[int], seed: int) -> None:
    """Released by its holder, or given back, which a release afterwards does not repeat."""
    shares, ended, chance = Shares(100, "full"), Counter[int](), random.Random(seed)
    pieces: dict[int, Piece] = {}
    for number, size in enumerate(sizes):
        with contextlib.suppress(Overloaded):
            pieces[number] = shares.ask((chance.choice("ab"), "x"), size, partial(_count, ended, number))
        assert shares.held == sum(piece.size for piece in pieces.values() if piece.held)
    given_back = set(ended)
    assert given_back == {number for number, piece in pieces.items() if not piece.held}
    for piece in pieces.values():
        piece.release()
    assert set(ended.values()) <= {1}
    assert (set(ended), shares.held) == (given_back, 0)


def _count(ended: Counter[int], number: int, error: Overloaded) -> None:
    assert error.details == {"limit": "tenant"}
    ended[number] += 1


def test_accounts_of_those_who_left_are_forgotten() -> None:
    simulation = Simulation(1000)
    simulation.ask(("a", "stays"))

    def many_come_and_go() -> None:
        for number in range(5000):
            simulation.shares.ask(("a", str(number)), 1, lambda error: None).release()
            simulation.shares.ask((str(number), "x"), 1, lambda error: None).release()

    assert bytes_left_by(many_come_and_go) < 200_000
