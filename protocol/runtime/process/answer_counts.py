"""Counts the answers to HTTP requests by route and status."""

from collections.abc import Mapping
from typing import Final

OTHER: Final = "other"  # the route of unknown paths, because strangers can invent any number of them


class AnswerCounts:
    """The counts of one server. `usual` maps its routes to the status with which each usually answers.

    These begin at 0, because Prometheus' `rate` leaves out the first value of a series.
    """

    def __init__(self, usual: Mapping[str, int]) -> None:
        self._routes = frozenset(usual)
        self._answers = dict.fromkeys(usual.items(), 0)

    def count(self, path: str, status: int) -> None:
        """Count an answer."""
        key = path if path in self._routes else OTHER, status
        self._answers[key] = self._answers.get(key, 0) + 1

    def counters(self) -> dict[str, int]:
        """Return the answers since the start."""
        return series_of(self._answers)


def series_of(answers: Mapping[tuple[str, int], int]) -> dict[str, int]:
    """Return the counters of `/metrics` for answers by route and status."""
    return {f"httpRequests:{route} {status}": count for (route, status), count in answers.items()}
