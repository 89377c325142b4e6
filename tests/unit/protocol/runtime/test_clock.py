"""Clocks that disagree: how far is found out by an answer, and allowed for."""

import logging

import pytest

from protocol.runtime.clock import SharedClock, skew_of


@pytest.mark.parametrize(
    ("theirs", "sent", "answered", "skew"),
    [
        (6_010, 1_000, 1_020, 5_000),
        (1_010, 1_000, 1_020, 0),
        (-3_990, 1_000, 1_020, -5_000),
        (6_000, 1_000, 2_000, None),
    ],
)
def test_skew_is_what_the_middle_of_the_round_trip_says(
    theirs: int, sent: int, answered: int, skew: int | None
) -> None:
    assert skew_of(theirs, sent, answered) == skew


def test_process_that_does_not_say_how_late_it_is_there_has_no_skew() -> None:
    assert skew_of(0, 1_000, 1_010) is None


def test_clock_is_put_right_and_a_large_skew_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    clock = SharedClock(lambda: now[0], wall=lambda: 10_000)
    clock.is_ahead_by(900)
    assert (clock.now_ms(), caplog.records) == (9_100, [])
    for now[0] in (1.0, 2.0, 70.0):
        clock.is_ahead_by(-5_000)
    assert clock.now_ms() == 15_000
    assert [(line.levelno, "5.0 s behind the registry's" in line.getMessage()) for line in caplog.records] == [
        (logging.WARNING, True)
    ] * 2
