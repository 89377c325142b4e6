from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.memory import bytes_left_by
from support.played.known import Known, client

from agent_api.commands.least_busy import AVOID_SECONDS, LOOKED_AT, MAX_REMEMBERED, TELLING_TIMEOUT_MS, Ask, LeastBusy
from protocol.errors import BY_CODE, Code, Unavailable
from protocol.subjects import ClientAddress

OURS = Ask("agent-1", "f", TELLING_TIMEOUT_MS)
OTHERS = OURS._replace(sub="agent-2")
HASTY = OURS._replace(timeout_ms=TELLING_TIMEOUT_MS - 1)


class Bench:
    """A balance, the clients that it chooses from, and how busy they are."""

    def __init__(self, count: int, **fields: str) -> None:
        self.least_busy = LeastBusy()
        self.known = Known(listeners=(self.least_busy.observe,))
        self.in_flight: Counter[ClientAddress] = Counter()
        for number in range(count):
            self.known.put(client(f"c{number}", "f", **fields))

    def choose(self, *tried: str, ask: Ask = OURS, now: float = 0.0) -> str | None:
        clients = self.known.clients("default")
        chosen = self.least_busy.choose(clients, list(clients), ask, tried, self.in_flight.__getitem__, now)
        return chosen.record.client_id if chosen else None

    def busy(self, client_id: str, commands: int) -> None:
        self.in_flight[ClientAddress("default", client_id)] = commands

    def ended(self, client_id: str, code: str, limit: str | None = None, *, ask: Ask = OURS, now: float = 0.0) -> None:
        error = BY_CODE[code]("why", details=limit and {"limit": limit}).body()
        self.least_busy.ended(self.known.clients("default")[client_id], ask, error, now)


def test_idle_clients_take_turns() -> None:
    bench = Bench(3)
    chosen = [bench.choose() for _ in range(9)]
    assert Counter(chosen) == {"c0": 3, "c1": 3, "c2": 3}
    assert chosen[:3] == chosen[3:6] == chosen[6:]


def test_least_busy_goes_first() -> None:
    bench = Bench(3)
    bench.busy("c0", 2)
    bench.busy("c1", 1)
    bench.busy("c2", 4)
    assert [bench.choose() for _ in range(3)] == ["c1", "c1", "c1"]


@pytest.mark.parametrize("count", [1, 2, LOOKED_AT, LOOKED_AT + 1, 10, 100, 1000])
def test_thousand_commands_are_spread_evenly(count: int) -> None:
    """Half to twice the share, for a client of ten and for a client of a thousand; drawn at random or not."""
    bench = Bench(count)
    commands = 100 * count
    chosen = Counter(bench.choose() for _ in range(min(commands, 10_000)))
    share = min(commands, 10_000) / count
    assert all(share / 2 <= chosen[f"c{number}"] <= share * 2 for number in range(count) if share >= 50)


def test_load_is_spread_where_nothing_ends() -> None:
    bench = Bench(50)
    for _ in range(500):
        bench.in_flight[ClientAddress("default", str(bench.choose()))] += 1
    assert max(bench.in_flight.values()) <= 13


@given(st.sets(st.integers(0, 30)), st.integers(1, 30))
def test_who_was_tried_is_not_chosen_again(tried: set[int], count: int) -> None:
    names = {f"c{number}" for number in sorted(tried)[:4]}
    chosen = Bench(count).choose(*names)
    assert (chosen is None) == ({f"c{number}" for number in range(count)} <= names)
    assert chosen not in names


@pytest.mark.parametrize("code", sorted(AVOID_SECONDS))
def test_who_failed_lately_is_taken_only_where_there_is_no_other(code: str) -> None:
    bench = Bench(2)
    bench.busy("c1", 60)
    bench.known.put(client("c1", "f", gateway_id="gw-2"))
    bench.ended("c0", code)
    assert bench.choose(now=AVOID_SECONDS[code] - 0.1) == "c1"
    assert bench.choose("c1", now=AVOID_SECONDS[code] - 0.1) == "c0"
    assert bench.choose(now=AVOID_SECONDS[code] + 0.1) == "c0"


@pytest.mark.parametrize(
    ("code", "limit", "ask"),
    [
        (Code.RATE_LIMITED, "agent", OURS),
        (Code.RATE_LIMITED, None, OURS),
        (Code.OVERLOADED, "agent", OURS),
        (Code.TIMEOUT, None, HASTY),
    ],
)
def test_what_an_agent_brings_upon_itself_steers_its_own_commands_alone(
    code: Code, limit: str | None, ask: Ask
) -> None:
    bench = Bench(1)
    bench.known.put(client("c1", "f", gateway_id="gw-2"))
    bench.busy("c1", 60)
    bench.ended("c0", code.value, limit, ask=ask)
    assert [bench.choose(ask=who) for who in (OURS, OTHERS)] == ["c1", "c0"]


def test_agent_that_is_too_fast_for_a_gateway_goes_to_another_one() -> None:
    bench = Bench(3)
    bench.known.put(client("other", "f", gateway_id="gw-2"))
    bench.busy("other", 60)
    bench.ended("c0", Code.RATE_LIMITED.value, "agent")
    assert [bench.choose(ask=who) for who in (OURS, OTHERS)] == ["other", "c0"]


def test_limit_of_a_capability_is_heeded_by_all_who_call_it_and_by_nobody_else() -> None:
    bench = Bench(2)
    bench.busy("c1", 60)
    bench.ended("c0", Code.RATE_LIMITED.value, "capability")
    assert [bench.choose(ask=ask) for ask in (OURS, OTHERS, OTHERS._replace(target="g"))] == ["c1", "c1", "c0"]


@pytest.mark.parametrize("code", [Code.COMMAND_FAILED, Code.CANCELLED, Code.INVALID_PARAMETERS])
def test_failure_of_the_command_itself_says_nothing_about_the_client(code: Code) -> None:
    bench = Bench(2)
    bench.busy("c1", 1)
    bench.ended("c0", code.value)
    assert bench.choose() == "c0"


def test_gateway_that_cannot_be_reached_is_avoided_with_all_its_clients() -> None:
    bench = Bench(3)
    bench.known.put(client("other", "f", gateway_id="gw-2"))
    bench.busy("other", 60)
    bench.ended("c0", Code.UNAVAILABLE.value)
    assert bench.choose(now=1.0) == "other"


def test_detached_client_comes_after_connected_ones() -> None:
    bench = Bench(1)
    bench.known.put(client("away", "f", state="detached"))
    bench.busy("c0", 60)
    assert bench.choose() == "c0"
    assert bench.choose("c0") == "away"


def test_nothing_is_kept_of_those_who_are_gone() -> None:
    bench = Bench(0)

    def many_come_and_go() -> None:
        for number in range(2000):
            bench.known.put(client(f"c{number}", "f"))
            bench.ended(str(bench.choose()), Code.TIMEOUT.value)
            bench.known.remove(f"c{number}")

    assert bytes_left_by(many_come_and_go) < 20_000


def test_what_is_avoided_is_forgotten_in_time() -> None:
    bench = Bench(1)

    def many_are_lost() -> None:
        for number in range(10 * MAX_REMEMBERED):
            gone = client(f"g{number}", gateway_id=f"gw-{number}")
            bench.least_busy.ended(gone, OURS, Unavailable("why").body(), float(number))

    assert bytes_left_by(many_are_lost) < 1000 * MAX_REMEMBERED


def test_more_than_is_remembered_at_once_pushes_out_the_oldest() -> None:
    bench = Bench(2)
    bench.busy("c1", 60)
    for number in range(MAX_REMEMBERED + 1):
        bench.ended("c0", Code.TIMEOUT.value, ask=HASTY._replace(sub=f"a{number}"))
    asks = [HASTY._replace(sub=f"a{number}") for number in (0, 1, MAX_REMEMBERED)]
    assert [bench.choose(ask=ask) for ask in asks] == ["c0", "c1", "c1"]
