"""The deployment's clock: this machine's clock, minus its lead over the others.

A registry compares its clock with each gateway's when it pings, and reports the difference to the gateway. An agent API
compares its own clock with those of gateways. Times in messages then follow the registry's clock, so that a machine
with a wrong clock refuses nothing and sends nothing that is refused. Tokens expire by the machine's own clock.
"""

import logging
import time
from collections.abc import Callable

from protocol.runtime.log_throttle import LogThrottle

LOGGED_MS = 1000
LOG_SECONDS = 60.0
MAX_ROUND_TRIP_SECONDS = 0.25  # a comparison may be wrong by half of it; slower ones are ignored

log = logging.getLogger(__name__)


def wall_ms() -> int:
    """Return the time of day by this machine, in milliseconds since 1970."""
    return int(time.time() * 1000)


def skew_of(theirs_ms: int, sent_ms: int, answered_ms: int) -> int | None:
    """Return how far another clock is ahead of ours, from its answer to a request; None if that took too long."""
    if not theirs_ms or answered_ms - sent_ms > MAX_ROUND_TRIP_SECONDS * 1000:
        return None
    return theirs_ms - (sent_ms + answered_ms) // 2


class SharedClock:
    """Tells the time of the deployment; `skew_ms` is how far this machine is ahead of it."""

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], int] = wall_ms) -> None:
        self.skew_ms = 0
        self._wall = wall
        self._lines = LogThrottle(LOG_SECONDS, monotonic)

    def now_ms(self) -> int:
        """Return the time of day of the deployment."""
        return self._wall() - self.skew_ms

    def earliest_ms(self) -> int:
        """Return the time of day of the deployment or of this machine, whichever is earlier.

        By it a message of a sender that does not know the deployment's clock is less late.
        """
        return self._wall() - max(0, self.skew_ms)

    def is_ahead_by(self, skew_ms: int) -> None:
        """Note a comparison. A difference above a second is logged, once a minute at most."""
        self.skew_ms = skew_ms
        if abs(skew_ms) > LOGGED_MS and self._lines.due():
            way = "ahead of" if skew_ms > 0 else "behind"
            log.warning("this machine's clock is %.1f s %s the registry's: mend it (NTP)", abs(skew_ms) / 1000, way)
