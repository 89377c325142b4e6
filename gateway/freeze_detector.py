"""Detects that this process was frozen: stopped, swapped out or starved for longer than callers wait.

After a freeze a gateway finds the commands of that time in its NATS socket. Their callers have given up with an error,
so nobody waits for their execution now. Sans-I/O: the time is passed in often, and a gap between two times is a freeze.
"""

FROZEN_SECONDS = 1.0


class FreezeDetector:
    """Tells whether commands that arrive now may be left over from a freeze. Times are monotonic, in seconds."""

    def __init__(self, now: float) -> None:
        self._last_seen = now
        self.backlog = False

    def observe(self, now: float) -> bool:
        """Note the time. Return whether this shows a new freeze, so that the backlog must be waited out."""
        gap = now - self._last_seen
        self._last_seen = now
        if gap < FROZEN_SECONDS:
            return False
        self.backlog = True
        return True

    def backlog_done(self) -> None:
        """Note that all messages from before the end of the freeze have been handled."""
        self.backlog = False
