"""How much readers hold in memory all together, each for itself and for as long as it stalls.

That is a page of the past, and of the recent messages, which all share, what these have let go of since it was taken.
There is room for a tenant while it holds less than is left free, and for a `sub` of it while that holds less than is
left of this to its tenant. So a few leave room for the next, and nothing need be set aside: one tenant alone may hold
half of all, two a third each; one `sub` alone a third. Sans-I/O.
"""

from collections import Counter
from typing import TypeVar

MAX_BYTES = 64 * 1024 * 1024

Whose = tuple[str, str]  # a tenant and a `sub`
_Holder = TypeVar("_Holder")


class Budget:
    """What is held. The last page that is let in may exceed a bound."""

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes
        self._of_tenant: Counter[str] = Counter()
        self._of_sub: Counter[Whose] = Counter()

    def has_room(self, whose: Whose) -> bool:
        """Tell whether somebody may hold more."""
        left_to_tenant = self._free - self._of_tenant[whose[0]]
        return self._of_sub[whose] < left_to_tenant

    def hold(self, whose: Whose, size: int) -> None:
        """Count what is held from now on; less than 0 for what is held no more."""
        self._free -= size
        _add(self._of_tenant, whose[0], size)
        _add(self._of_sub, whose, size)


def _add(held: Counter[_Holder], holder: _Holder, size: int) -> None:
    held[holder] += size
    if not held[holder]:
        del held[holder]
