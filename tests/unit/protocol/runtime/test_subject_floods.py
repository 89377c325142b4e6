"""When the subjects of a flooded tenant's clients are left, and for how long."""

import pytest
from support.memory import bytes_left_by

from protocol.runtime.subject_floods import (
    CALM_SECONDS,
    FIRST_LEAVE_SECONDS,
    MAX_IN_WINDOW,
    MAX_IN_WINDOW_AGAIN,
    MAX_LAG_SECONDS,
    MAX_LEAVE_SECONDS,
    SUSPECT_IN_WINDOW,
    WINDOW_SECONDS,
    SubjectFloods,
)


def flood(floods: SubjectFloods, tenant: str, messages: int, now: float, seconds: float = WINDOW_SECONDS / 2) -> float:
    """Drop so many messages in a time; return for how long the last one has its subject left."""
    leave = 0.0
    for number in range(messages):
        leave = floods.dropped(tenant, now + seconds * number / messages)
    return leave


def test_flood_that_can_be_dropped_leaves_no_subject() -> None:
    floods = SubjectFloods()
    assert all(flood(floods, "a", MAX_IN_WINDOW - 1, now) == 0 for now in range(10))
    assert flood(floods, "b", MAX_IN_WINDOW, 20, seconds=1) == 0


def test_flood_that_cannot_leaves_the_subjects_of_its_tenant_alone() -> None:
    floods = SubjectFloods()
    assert flood(floods, "a", MAX_IN_WINDOW, 0) == 1
    assert 0 < floods.dropped("a", 0.5) < 1
    assert floods.dropped("b", 0.5) == 0


def test_subjects_are_left_longer_while_the_flood_goes_on() -> None:
    floods, now, left = SubjectFloods(), 0.0, []
    for _ in range(6):
        leave = flood(floods, "a", MAX_IN_WINDOW, now, seconds=0.01)
        left.append(round(leave))
        now += 0.02 + leave
    assert left == [1, 2, 4, 8, 8, 8]
    assert MAX_LEAVE_SECONDS == 8
    assert round(flood(floods, "a", MAX_IN_WINDOW, now + CALM_SECONDS + 1)) == 1


def test_flood_that_goes_on_is_noticed_sooner() -> None:
    """While it is noticed NATS queues messages, and the neighbours' behind them."""
    floods = SubjectFloods()
    left = flood(floods, "a", MAX_IN_WINDOW, 0)
    assert round(flood(floods, "a", MAX_IN_WINDOW_AGAIN, left + 1)) == 2
    assert flood(floods, "b", MAX_IN_WINDOW_AGAIN, left + 1) == 0
    assert flood(floods, "a", MAX_IN_WINDOW_AGAIN, left + 3 + CALM_SECONDS + 1) == 0


def test_flood_that_makes_nats_late_is_noticed_below_the_rate() -> None:
    """A busy machine has less time for us, and drops fewer."""
    lags = [0.0]
    floods = SubjectFloods(lambda now: lags[0])
    assert flood(floods, "a", SUSPECT_IN_WINDOW + 100, 0) == 0
    lags[0] = MAX_LAG_SECONDS
    assert flood(floods, "a", SUSPECT_IN_WINDOW - 1, 1) == 0
    assert flood(floods, "a", SUSPECT_IN_WINDOW, 2) == 1
    assert floods.dropped("b", 2, SUSPECT_IN_WINDOW - 1) == 0
    assert floods.dropped("b", 2, 1) == 1


def test_lag_is_not_asked_for_while_little_is_dropped() -> None:
    floods = SubjectFloods(lambda now: pytest.fail("it would be measured"))
    assert flood(floods, "a", SUSPECT_IN_WINDOW - 1, 0) == 0


def test_calm_tenants_are_forgotten() -> None:
    floods = SubjectFloods()

    def many_come_one_by_one() -> None:
        for number in range(2000):
            floods.dropped(f"t{number}", number * (CALM_SECONDS + 1))

    assert bytes_left_by(many_come_one_by_one) < 20_000


def test_first_credit_that_is_used_up_may_be_a_burst() -> None:
    floods = SubjectFloods()
    assert floods.used_up("a", 0.0) == 0.0
    assert floods.used_up("b", 0.1) == 0.0
    assert floods.used_up("a", 0.5) == FIRST_LEAVE_SECONDS
    assert floods.used_up("a", 0.6) == pytest.approx(FIRST_LEAVE_SECONDS - 0.1)
    assert floods.used_up("a", 2.0) == 2 * FIRST_LEAVE_SECONDS
    assert floods.used_up("a", 2.0 + 2 * FIRST_LEAVE_SECONDS + CALM_SECONDS + 0.1) == 0.0
