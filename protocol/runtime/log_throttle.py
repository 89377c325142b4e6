"""Throttles log lines that peers can cause: at most one per period, with the number of occurrences since the last.

    if count := self._refusals.due():
        log.warning("refused %d messages", count)

The caller writes the line, because only the caller knows its words and its level.
"""

from collections.abc import Callable


class LogBudget:
    """Admits a number of lines a second, and counts the ones that it keeps back. `clock` returns seconds."""

    def __init__(self, lines_a_second: int, clock: Callable[[], float]) -> None:
        self._lines_a_second = lines_a_second
        self._clock = clock
        self._second = float("-inf")
        self._lines = 0
        self._kept_back = 0

    def admits(self) -> bool:
        """Tell whether a line may be written now."""
        now = self._clock()
        if now >= self._second + 1:
            self._second, self._lines = now, 0
        self._lines += 1
        if self._lines <= self._lines_a_second:
            return True
        self._kept_back += 1
        return False

    def take_kept_back(self) -> int:
        """Return the number of lines that were kept back since the last call."""
        count, self._kept_back = self._kept_back, 0
        return count


class LogThrottle:
    """Decides when a line is due. The first is due at once. `clock` returns seconds."""

    def __init__(self, period_seconds: float, clock: Callable[[], float]) -> None:
        self._period_seconds = period_seconds
        self._clock = clock
        self._next_at = float("-inf")
        self._count = 0

    def due(self, count: int = 1) -> int:
        """Add `count` occurrences. If a line is due, return the number of occurrences since the last line, else 0.

        With `count` 0 it is due only if occurrences have no line yet.
        """
        self._count += count
        now = self._clock()
        if not self._count or now < self._next_at:
            return 0
        self._next_at = now + self._period_seconds
        told, self._count = self._count, 0
        return told

    def flush(self) -> int:
        """Return the number of occurrences without a line, for a last line at the end."""
        told, self._count = self._count, 0
        return told
