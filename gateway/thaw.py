"""Noticing that this process was frozen: stopped, swapped out or starved for longer than callers wait.

A gateway that comes back from a freeze finds in its NATS socket what was sent to it meanwhile. Callers have given those
commands up and been told so; executing them now would do what nobody waits for. Sans-I/O: it is told the time often,
and a gap between two tellings is the freeze.
"""

FROZEN_SECONDS = 1.0


class Thaw:
    """Tells whether commands that arrive now may be left over from a freeze. Times are monotonic, in seconds."""

    def __init__(self, now: float) -> None:
        self._last_seen = now
        self.backlog = False

    def observe(self, now: float) -> bool:
        """Note the time; return whether a freeze has just been noticed, so that the backlog must be waited out."""
        gap = now - self._last_seen
        self._last_seen = now
        if gap < FROZEN_SECONDS:
            return False
        noticed, self.backlog = not self.backlog, True
        return noticed

    def backlog_done(self) -> None:
        """Note that everything which was sent before the thaw has been seen."""
        self.backlog = False
