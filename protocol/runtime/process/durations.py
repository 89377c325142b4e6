"""A histogram of durations in Prometheus' form: cumulative counts by upper bound."""

from bisect import bisect_left

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # seconds
SUM, ABOVE = "sum", "+Inf"


class Durations:
    """A histogram of durations of one kind; `key` is the prefix of its counters."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._counts = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0

    def note(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def counters(self) -> dict[str, int]:
        """Return the number of durations up to each bound, and the sum of all in milliseconds."""
        found, total = {}, 0
        for bound, count in zip((*map(str, BOUNDS), ABOVE), self._counts, strict=True):
            total += count
            found[f"{self._key}:{bound}"] = total
        return {**found, f"{self._key}:{SUM}": round(self._seconds * 1000)}
