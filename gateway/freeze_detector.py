"""Detects that this process was frozen: stopped, swapped out or starved for longer than callers wait.

After a freeze a gateway finds the commands of that time in its NATS socket. Their callers have given up and heard an
error, so executing them now would do work that nobody waits for. Sans-I/O: it takes the time often, and a gap between
two times is the freeze.
"""

FROZEN_SECONDS = 1.0


class FreezeDetector:
    """Tells whether commands that arrive now may be left over from a freeze. Times are monotonic, in seconds."""

    def __init__(self, now: float) -> None:
        self._last_seen = now
        self.backlog = False

    def observe(self, now: float) -> bool:
        """Note the time; return whether a freeze has just been noticed, so that its backlog must be waited out."""
        gap = now - self._last_seen
        self._last_seen = now
        if gap < FROZEN_SECONDS:
            return False
        self.backlog = True
        return True

    def backlog_done(self) -> None:
        """Note that everything which was sent before the end of the last freeze has been seen."""
        self.backlog = False
