"""Noticing a freeze by a gap in the time."""

from gateway.freeze_detector import FROZEN_SECONDS, FreezeDetector


def test_process_that_is_told_the_time_often_was_not_frozen() -> None:
    thaw = FreezeDetector(0)
    assert not any(thaw.observe(now / 4) for now in range(1, 100))
    assert not thaw.backlog


def test_freeze_is_noticed_once() -> None:
    thaw = FreezeDetector(0)
    assert [thaw.observe(FROZEN_SECONDS), thaw.backlog] == [True, True]
    assert [thaw.observe(FROZEN_SECONDS + 0.1), thaw.backlog] == [False, True]
    thaw.backlog_done()
    assert [thaw.backlog, thaw.observe(30), thaw.backlog] == [False, True, True]


def test_second_freeze_during_the_backlog_of_the_first_is_noticed_too() -> None:
    thaw = FreezeDetector(0)
    assert [thaw.observe(9), thaw.observe(20), thaw.backlog] == [True, True, True]
