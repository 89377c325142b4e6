"""Counts commands by outcome, and how long they took.

Every outcome is there from the start, because Prometheus' `rate` leaves out the first value of a series.
"""

from collections import Counter

from protocol.audit import SUCCESS
from protocol.errors import Code
from protocol.runtime.process.durations import Durations


class CommandCounts:
    """The counters of `/metrics` that tell how commands end."""

    def __init__(self) -> None:
        self._outcomes = Counter({SUCCESS: 0} | {code.value: 0 for code in Code})
        self._durations = Durations("commandDurationSeconds")

    def count(self, outcome: str) -> None:
        """Count a command that ended before it was sent."""
        self._outcomes[outcome] += 1

    def note(self, outcome: str, seconds: float) -> None:
        """Count a command, and its duration."""
        self._outcomes[outcome] += 1
        self._durations.note(seconds)

    def counters(self) -> dict[str, int]:
        """Return what is counted since the start."""
        outcomes = {f"commands:{outcome}": count for outcome, count in self._outcomes.items()}
        return {**outcomes, **self._durations.counters()}
