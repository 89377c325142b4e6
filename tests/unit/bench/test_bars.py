import pytest
from measuring.bars import BARS, FLOOR, GOAL, Bar, Verdict, all_met, judge

SPEED = "commands.express-redis.32.per_second"
MISSED_FLOOR = Verdict(Bar(FLOOR, "x", "a figure", at_least=2), 1, met=False)
MISSED_GOAL = Verdict(Bar(GOAL, "x", "a figure", at_least=2), 1, met=False)


def test_bars_ask_for_one_thing_each() -> None:
    assert all((bar.at_least is None) != (bar.at_most is None) for bar in BARS)


def test_every_bar_of_a_figure_is_held_against_it() -> None:
    verdicts = judge({SPEED: 2.0})
    assert [(verdict.bar.kind, verdict.bar.needed, verdict.met) for verdict in verdicts] == [
        (FLOOR, ">= 1.5", True),
        (GOAL, ">= 3", False),
    ]


def test_figure_without_a_bar_is_not_judged() -> None:
    assert judge({"commands.express-redis.7.per_second": 0.1}) == []


@pytest.mark.parametrize(("value", "met"), [(24.0, True), (24.1, False)])
def test_bar_includes_its_own_value(value: float, met: bool) -> None:
    assert judge({"connections.kib": value})[0].met is met


@pytest.mark.parametrize(("kind", "met"), [(FLOOR, True), (GOAL, False)])
def test_floors_do_not_ask_for_goals(kind: str, met: bool) -> None:
    assert all_met([MISSED_GOAL], kind) is met


@pytest.mark.parametrize("kind", [FLOOR, GOAL])
def test_missed_floor_is_a_miss_for_goals_too(kind: str) -> None:
    assert not all_met([MISSED_FLOOR], kind)
