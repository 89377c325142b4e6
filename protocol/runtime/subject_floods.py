"""Decides when a process unsubscribes a tenant's subjects for a while, because they are flooded. Sans-I/O.

Dropping a message costs some microseconds, so a process can drop 100,000 a second on a quiet machine. Above that, NATS
queues messages for this process, and those of all tenants wait in that queue. Only somebody who may publish in a tenant
can flood its subjects, so that tenant pays: its callers get `unavailable` for a while.

There are two signs of such a flood: more messages than can be dropped, or many messages while the queue is long,
because the machine has less time for this process.
"""

from collections.abc import Callable

WINDOW_SECONDS = 0.05
MAX_IN_WINDOW = 5_000
MAX_IN_WINDOW_AGAIN = 500  # for a tenant that was flooded a moment ago, because it is probably the same flood
SUSPECT_IN_WINDOW = 500  # from here on the length of the queue is measured
MAX_LAG_SECONDS = 0.1
FIRST_LEAVE_SECONDS = 1.0
MAX_LEAVE_SECONDS = 8.0
CALM_SECONDS = 10.0  # after that the next flood counts as the first


class _Flood:
    """The flood of one tenant. Its subjects are subscribed again at `until`."""

    __slots__ = ("leave_seconds", "messages", "until", "used_up_at", "window_from")

    def __init__(self, now: float) -> None:
        self.window_from = now
        self.messages = 0
        self.until = 0.0
        self.used_up_at = float("-inf")
        self.leave_seconds = 0.0

    def was_flooded(self, now: float) -> bool:
        """Tell whether the last flood ended less than ten seconds ago, so that this one continues it."""
        return self.leave_seconds > 0 and now - self.until <= CALM_SECONDS

    def begin(self, now: float) -> float:
        """Return for how many seconds to unsubscribe: longer each time while the flood goes on."""
        again = self.was_flooded(now)
        self.leave_seconds = min(2 * self.leave_seconds, MAX_LEAVE_SECONDS) if again else FIRST_LEAVE_SECONDS
        self.until = now + self.leave_seconds
        self.messages = 0
        return self.leave_seconds


class SubjectFloods:
    """The floods at one process, by tenant. `now` is a monotonic time in seconds.

    `lag(now)` returns how many seconds late NATS's messages are.
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
        """Forget tenants whose last flood is over, so that memory is bounded by the floods of the last seconds."""
        calm = [
            name
            for name, flood in self._tenants.items()
            if now - max(flood.window_from, flood.until, flood.used_up_at) > CALM_SECONDS
        ]
        for name in calm:
            del self._tenants[name]
