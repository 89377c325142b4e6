"""Figures of paired rounds: of many, the median is told, and beside it the smallest and the largest."""

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """The middle of some figures, and how far they reach."""

    median: float
    low: float
    high: float

    def shown(self, digits: int = 2) -> str:
        """Return it as a table shows it: `1.52 (1.40-1.61)`."""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"


def spread(figures: Iterable[float]) -> Spread:
    """Return the spread of at least one figure."""
    known = list(figures)
    return Spread(statistics.median(known), min(known), max(known))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the spread of the ratios of pairs, each measured one right after the other."""
    return spread(mine / other if other else float("inf") for mine, other in zip(ours, theirs, strict=True))


def percentile(ascending: Sequence[float], percent: float) -> float:
    """Return a percentile of figures in ascending order; 0 if there are none."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * percent / 100))] if ascending else 0.0
