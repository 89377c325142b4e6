"""Detects a flood of invalid frames: more than 200 within ten seconds. Sans-I/O."""

from collections import deque

MAX_BAD_FRAMES = 200
WINDOW_SECONDS = 10.0


class BadFrames:
    """The bad frames of one connection within the last ten seconds."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def one_more(self, now: float) -> bool:
        """Count a bad frame. Return whether there are too many."""
        self._times.append(now)
        while self._times[0] < now - WINDOW_SECONDS:
            self._times.popleft()
        return len(self._times) > MAX_BAD_FRAMES
