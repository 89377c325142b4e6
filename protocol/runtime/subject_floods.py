"""When a process leaves a tenant's subjects for a while, because of the messages there that it drops. Sans-I/O.

To drop a message costs some microseconds, so a process keeps up with 100,000 a second on a quiet machine. Above that
NATS queues what it has for this process, and the messages of all tenants wait in that queue. Only those who may publish
in a tenant can flood its subjects, so the tenant pays: its callers hear `unavailable` for a while. Two things show such
a flood: more messages than can be dropped, or many while the queue is long, because the machine has less time for us.
"""

from collections.abc import Callable

WINDOW_SECONDS = 0.05
MAX_IN_WINDOW = 5_000
MAX_IN_WINDOW_AGAIN = 500  # of a tenant that was flooded lately: it is the same flood, and NATS queues it at once
SUSPECT_IN_WINDOW = 500  # from here on we look how long the queue is
MAX_LAG_SECONDS = 0.1
FIRST_LEAVE_SECONDS = 1.0
MAX_LEAVE_SECONDS = 8.0
CALM_SECONDS = 10.0  # after that the next flood counts as the first


class _Flood:
    """What is known of a tenant. `until` is when its subjects are taken up again."""

    __slots__ = ("leave_seconds", "messages", "until", "used_up_at", "window_from")

    def __init__(self, now: float) -> None:
        self.window_from = now
        self.messages = 0
        self.until = 0.0
        self.used_up_at = float("-inf")
        self.leave_seconds = 0.0

    def was_flooded(self, now: float) -> bool:
        """Tell whether the last flood is so short a time ago that this one counts as its continuation."""
        return self.leave_seconds > 0 and now - self.until <= CALM_SECONDS

    def begin(self, now: float) -> float:
        """Leave for longer each time, as long as the flood goes on; return for how long."""
        again = self.was_flooded(now)
        self.leave_seconds = min(2 * self.leave_seconds, MAX_LEAVE_SECONDS) if again else FIRST_LEAVE_SECONDS
        self.until = now + self.leave_seconds
        self.messages = 0
        return self.leave_seconds


class SubjectFloods:
    """The floods at one process, by tenant. `now` is a monotonic time in seconds.

    `lag` is called with it, and returns how many seconds late the messages of NATS are.
    """

    def __init__(self, lag: Callable[[float], float] = lambda now: 0.0) -> None:
        self._lag = lag
        self._tenants: dict[str, _Flood] = {}

    def dropped(self, tenant: str, now: float, count: int = 1) -> float:
        """Count dropped messages; return for how many seconds their subject is to be left, 0 for not at all."""
        flood = self._flood_of(tenant, now)
        if now < flood.until:
            return flood.until - now
        if now - flood.window_from > WINDOW_SECONDS:
            flood.window_from, flood.messages = now, 0
        flood.messages += count
        return flood.begin(now) if self._is_too_much(flood, now) else 0.0

    def used_up(self, tenant: str, now: float) -> float:
        """Count a subscription whose credit was used up; return for how many seconds to leave it, 0 the first time."""
        flood = self._flood_of(tenant, now)
        if now < flood.until:
            return flood.until - now
        is_first = now - flood.used_up_at > CALM_SECONDS and not flood.was_flooded(now)
        flood.used_up_at = now
        return 0.0 if is_first else flood.begin(now)

    def _flood_of(self, tenant: str, now: float) -> _Flood:
        flood = self._tenants.get(tenant)
        if flood is None:
            self._forget(now)
            flood = self._tenants[tenant] = _Flood(now)
        return flood

    def _is_too_much(self, flood: _Flood, now: float) -> bool:
        if flood.messages < SUSPECT_IN_WINDOW:
            return False
        if flood.messages >= (MAX_IN_WINDOW_AGAIN if flood.was_flooded(now) else MAX_IN_WINDOW):
            return True
        return self._lag(now) >= MAX_LAG_SECONDS

    def _forget(self, now: float) -> None:
        """Forget tenants that have been calm, so that there are no more than were flooded lately."""
        calm = [
            name
            for name, flood in self._tenants.items()
            if now - max(flood.window_from, flood.until, flood.used_up_at) > CALM_SECONDS
        ]
        for name in calm:
            del self._tenants[name]
