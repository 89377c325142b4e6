"""Outcomes of ended commands, kept for 30 s, so that a caller whose reply was lost gets the outcome by a probe."""

from collections import OrderedDict

KEEP_SECONDS = 30.0
MAX_BYTES = 32 * 1024 * 1024

OutcomeKey = tuple[str, str, str]  # client id, the caller's `sub`, its request id


class RecentOutcomes:
    """Sent responses. The oldest are dropped first, by age and by total size. `now` is monotonic, in seconds."""

    def __init__(self, keep_seconds: float = KEEP_SECONDS, max_bytes: int = MAX_BYTES) -> None:
        self._keep_seconds = keep_seconds
        self._max_bytes = max_bytes
        # Not a plain dict: looking for its first entry passes all the places of removed ones, a second for 100,000.
        self._kept: OrderedDict[OutcomeKey, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    def put(self, key: OutcomeKey, response: bytes, now: float) -> None:
        """Keep an outcome. A later one with the same key replaces it. `expire()` removes old ones."""
        if key in self._kept:
            self._forget(key)
        self._kept[key] = (now, response)
        self._bytes += len(response)
        if self._bytes > self._max_bytes:
            self.expire(now)

    def get(self, key: OutcomeKey, now: float) -> bytes | None:
        """Return an outcome, or None if there was none or it has expired."""
        kept = self._kept.get(key)
        return kept[1] if kept and now - kept[0] <= self._keep_seconds else None

    def expire(self, now: float) -> None:
        """Remove outcomes that are too old, and then the oldest ones until the rest is small enough."""
        while self._kept:
            key, (at, _) = next(iter(self._kept.items()))
            if now - at <= self._keep_seconds and self._bytes <= self._max_bytes:
                return
            self._forget(key)

    def _forget(self, key: OutcomeKey) -> None:
        self._bytes -= len(self._kept.pop(key)[1])
