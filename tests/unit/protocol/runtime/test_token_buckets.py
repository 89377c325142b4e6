"""Token buckets: never more than promised, never refused when the wait is over, never without a bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.records import Rate
from protocol.runtime.token_buckets import TokenBuckets

SLACK = 0.01
instants = st.floats(0, 1e7)
rates = st.builds(Rate, st.floats(0.01, 1000), st.floats(1, 1000))
pauses = st.lists(st.floats(0, 100), min_size=1, max_size=60)


@given(rates, instants, pauses)
def test_no_span_of_time_holds_more_than_the_burst_and_what_it_refills(
    rate: Rate, start: float, steps: list[float]
) -> None:
    buckets, now, taken = TokenBuckets(10), start, list[float]()
    for step in steps:
        now += step
        if not buckets.wait("key", rate, now):
            buckets.take("key", rate, now)
            taken.append(now)
    for first, begin in enumerate(taken):
        for last, end in enumerate(taken[first:], first):
            assert last - first + 1 <= rate.burst + (end - begin) * rate.per_second + SLACK


@given(rates, instants, st.integers(1, 50), st.floats(0, 10))
def test_what_had_to_wait_is_let_in_when_the_wait_is_over(rate: Rate, now: float, taken: int, owed: float) -> None:
    buckets = TokenBuckets(10)
    for _ in range(taken):
        buckets.take("key", rate, now)
    buckets.take("key", rate, now, owed)
    wait = buckets.wait("key", rate, now)
    assert (wait > 0) == (taken + owed + 1 > rate.burst + 1e-3)
    assert not buckets.wait("key", rate, now + wait)


def test_buckets_are_apart_and_waiting_takes_nothing() -> None:
    buckets, rate = TokenBuckets(10), Rate(1, 1)
    buckets.take("a", rate, 0)
    assert buckets.wait("a", rate, 0) == 1
    assert buckets.wait("a", rate, 0.75) == 0.25
    assert [buckets.wait("b", rate, 0) for _ in range(3)] == [0, 0, 0]


@given(rates, instants, pauses, st.floats(0.01, 3))
def test_claim_is_a_wait_and_then_a_take(rate: Rate, start: float, steps: list[float], tokens: float) -> None:
    one, other, now = TokenBuckets(10), TokenBuckets(10), start
    for step in steps:
        now += step
        wait = other.wait("key", rate, now, min(tokens, rate.burst))
        if not wait:
            other.take("key", rate, now, tokens)
        assert one.draw("key", rate, now, tokens) == pytest.approx(wait, abs=1e-6)


def test_claim_of_more_than_a_bucket_holds_is_owed() -> None:
    buckets, rate = TokenBuckets(10), Rate(1, 2)
    assert buckets.draw("key", rate, 0, 10) == 0
    assert buckets.draw("key", rate, 0, 1) == 9
    assert buckets.draw("key", rate, 9, 1) == 0


def test_full_buckets_are_forgotten() -> None:
    buckets = TokenBuckets(1000)
    for number in range(50):
        buckets.take(number, Rate(1, 10), 0)
    assert len(buckets) == 50
    buckets.take("later", Rate(1, 10), 1)
    assert len(buckets) == 1


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 5)), max_size=200))
def test_there_are_never_more_than_the_bound(uses: list[tuple[int, float]]) -> None:
    buckets, now = TokenBuckets(7), 0.0
    for key, step in uses:
        now += step
        buckets.take(key, Rate(0.1, 1), now)
        assert len(buckets) <= 7
        assert buckets.wait(key, Rate(0.1, 1), now) > 0, "the one just used was forgotten"
