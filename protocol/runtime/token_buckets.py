"""Token buckets for rate limits. Sans-I/O; `now` is monotonic, in seconds.

A token bucket is stored as the instant at which it will be full again. A full one needs no entry, so unused ones are
dropped at the next use of any, without a timer.
"""

from collections import OrderedDict
from collections.abc import Hashable

from protocol.records import Rate

_ROUNDING_TOKENS = 1e-3  # instants are floats, which after ten months of uptime resolve some nanoseconds


class TokenBuckets:
    """Token buckets by key. Beyond `max_keys` the least recently used one is dropped, and is thereby full."""

    def __init__(self, max_keys: int) -> None:
        self._max_keys = max_keys
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, key: Hashable, rate: Rate, now: float, tokens: float = 1.0) -> float:
        """Return the seconds until the token bucket has `tokens`; 0 if it has them now. Takes none."""
        used = max(0.0, self._full_at.get(key, now) - now) * rate.per_second
        missing = tokens - (rate.burst - used)
        return missing / rate.per_second if missing > _ROUNDING_TOKENS else 0.0

    def take(self, key: Hashable, rate: Rate, now: float, tokens: float = 1.0) -> None:
        """Take tokens even if the token bucket does not have them. Then it owes them."""
        self._full_at[key] = max(now, self._full_at.get(key, now)) + tokens / rate.per_second
        self._full_at.move_to_end(key)
        self._forget(now)

    def draw(self, key: Hashable, rate: Rate, now: float, tokens: float = 1.0) -> float:
        """Take tokens and return 0, or return in how many seconds the token bucket will have them.

        More tokens than it can ever have are taken from a full one, which then owes the rest.
        """
        known = self._full_at.get(key)
        full_at = now if known is None or known < now else known
        missing = min(rate.burst, tokens) - rate.burst + (full_at - now) * rate.per_second
        if missing > _ROUNDING_TOKENS:
            return missing / rate.per_second
        self._full_at[key] = full_at + tokens / rate.per_second
        self._full_at.move_to_end(key)
        if known is None:  # only a new key adds an entry
            self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        while self._full_at:
            full_at = next(iter(self._full_at.values()))
            if full_at > now and len(self._full_at) <= self._max_keys:
                return
            self._full_at.popitem(last=False)
