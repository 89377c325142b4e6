"""A line is due once per period, and says how much it stands for."""

from protocol.runtime.log_throttle import LogBudget, LogThrottle


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_first_line_is_due_at_once_and_the_next_after_the_period() -> None:
    clock = Clock()
    throttle = LogThrottle(5.0, clock)
    assert [throttle.due() for _ in range(3)] == [1, 0, 0]
    clock.now = 4.9
    assert throttle.due() == 0
    clock.now = 5.0
    assert throttle.due() == 4, "the three that were left out, and this one"
    assert throttle.due() == 0


def test_occurrences_may_be_counted_together() -> None:
    clock = Clock()
    throttle = LogThrottle(1.0, clock)
    assert throttle.due(16) == 16
    assert throttle.due(7) == 0
    clock.now = 1.0
    assert throttle.due(2) == 9


def test_what_was_left_out_can_be_asked_for() -> None:
    clock = Clock()
    throttle = LogThrottle(1.0, clock)
    assert throttle.due(0) == 0
    assert [throttle.due(), throttle.due()] == [1, 0]
    assert throttle.due(0) == 0, "the period has not passed"
    clock.now = 1.0
    assert [throttle.due(0), throttle.due(0)] == [1, 0]


def test_budget_lets_a_few_lines_a_second_through_and_counts_the_others() -> None:
    now = [0.0]
    budget = LogBudget(2, lambda: now[0])
    assert [budget.admits() for _ in range(5)] == [True, True, False, False, False]
    now[0] = 1.0
    assert (budget.admits(), budget.take_kept_back(), budget.take_kept_back()) == (True, 3, 0)
