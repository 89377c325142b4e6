"""Token buckets: how much may be taken at once and in a time. Sans-I/O; `now` is a monotonic time in seconds.

A bucket is kept as the instant at which it will be full again. One that is full needs no entry, so those that nobody
has touched for a while are forgotten by the next that somebody does, without a timer.
"""

from collections import OrderedDict
from collections.abc import Hashable

from protocol.records import Rate

_ROUNDING_TOKENS = 1e-3  # instants are floats: ten months of uptime leave some nanoseconds of resolution


class TokenBuckets:
    """Buckets by key, the least recently used forgotten (and thereby filled) beyond `max_keys`."""

    def __init__(self, max_keys: int) -> None:
        self._max_keys = max_keys
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, key: Hashable, rate: Rate, now: float, tokens: float = 1.0) -> float:
        """Return the seconds until the bucket holds so many tokens, 0 if it does now. Takes none."""
        used = max(0.0, self._full_at.get(key, now) - now) * rate.per_second
        missing = tokens - (rate.burst - used)
        return missing / rate.per_second if missing > _ROUNDING_TOKENS else 0.0

    def take(self, key: Hashable, rate: Rate, now: float, tokens: float = 1.0) -> None:
        """Take tokens, whether the bucket holds them or not: it then owes them."""
        self._full_at[key] = max(now, self._full_at.get(key, now)) + tokens / rate.per_second
        self._full_at.move_to_end(key)
        self._forget(now)

    def draw(self, key: Hashable, rate: Rate, now: float, tokens: float = 1.0) -> float:
        """Take tokens and return 0, or return in how many seconds the bucket will hold them.

        More tokens than it can ever hold are taken of a full bucket, which then owes them.
        """
        known = self._full_at.get(key)
        full_at = now if known is None or known < now else known
        missing = min(rate.burst, tokens) - rate.burst + (full_at - now) * rate.per_second
        if missing > _ROUNDING_TOKENS:
            return missing / rate.per_second
        self._full_at[key] = full_at + tokens / rate.per_second
        self._full_at.move_to_end(key)
        if known is None:  # only a new key makes more of them
            self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        while self._full_at:
            full_at = next(iter(self._full_at.values()))
            if full_at > now and len(self._full_at) <= self._max_keys:
                return
            self._full_at.popitem(last=False)
