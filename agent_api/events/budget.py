"""How much readers hold in memory all together, each for itself and for as long as it stalls.

That is a page of the past, and of the recent messages, which all share, what these have let go of since it was taken.
Sans-I/O.
"""

from collections import Counter

MAX_BYTES = 64 * 1024 * 1024
MAX_BYTES_PER_TENANT = 32 * 1024 * 1024


class Budget:
    """What is held, for each tenant and in all. The last page that is let in may exceed a bound."""

    def __init__(self, max_bytes: int, max_bytes_per_tenant: int) -> None:
        self._max_bytes = max_bytes
        self._max_bytes_per_tenant = max_bytes_per_tenant
        self._held: Counter[str] = Counter()
        self._total = 0

    def has_room(self, tenant: str) -> bool:
        """Tell whether another page may be read for a tenant."""
        return self._total < self._max_bytes and self._held[tenant] < self._max_bytes_per_tenant

    def hold(self, tenant: str, size: int) -> None:
        """Count what is held from now on; less than 0 for what is held no more."""
        self._total += size
        self._held[tenant] += size
        if not self._held[tenant]:
            del self._held[tenant]
