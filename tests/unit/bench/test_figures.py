from measuring.figures import Spread, percentile, ratios, spread


def test_spread_tells_the_middle_and_the_ends() -> None:
    assert spread([3.0, 1.0, 10.0]) == Spread(median=3.0, low=1.0, high=10.0)


def test_spread_is_shown_with_its_ends() -> None:
    assert Spread(1234.5, 1000, 2000).shown(0) == "1,234 (1,000-2,000)"


def test_ratios_are_those_of_pairs_not_of_medians() -> None:
    assert ratios([10.0, 1.0, 4.0], [5.0, 2.0, 4.0]) == Spread(median=1.0, low=0.5, high=2.0)


def test_percentile_is_one_of_the_figures() -> None:
    figures = list(range(1, 101))
    assert [percentile(figures, percent) for percent in (50, 99, 100)] == [51, 100, 100]


def test_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 99) == 0
