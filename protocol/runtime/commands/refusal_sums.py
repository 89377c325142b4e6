"""Sums up refusals if one `sub` causes more than 20 a second with one error code. Sans-I/O.

Without this, a few seconds of refused commands could push weeks of records out of the audit stream. A sum is one audit
record with a count. It keeps the fields that are equal in all its refusals and leaves the others out.
"""

from msgspec import UNSET
from msgspec.structs import replace

from protocol.audit import AuditRecord
from protocol.errors import Code
from protocol.records import Rate
from protocol.runtime.token_buckets import TokenBuckets

AT_WILL = frozenset(
    {
        Code.UNAUTHENTICATED,
        Code.CLIENT_NOT_FOUND,
        Code.UNKNOWN_CAPABILITY,
        Code.INVALID_REQUEST,
        Code.INVALID_FRAME,
        Code.INVALID_PARAMETERS,
        Code.PAYLOAD_TOO_LARGE,
        Code.PERMISSION_DENIED,
        Code.RATE_LIMITED,
        Code.OVERLOADED,
        Code.AMBIGUOUS_CLIENT,
        Code.CONFLICT,
    }
)
SINGLE = Rate(per_second=20.0, burst=20.0)
MAX_KEYS = 10_000  # of sums, and of token buckets
GATHER_SECONDS = 1.0
_COMMON = ("client_id", "user", "app", "role", "target", "action", "request_id")

_Key = tuple[str, str | None, str]


class RefusalSums:
    """The refusals of a process. `now` is a monotonic time in seconds."""

    def __init__(self) -> None:
        self.summed = 0  # refusals that have no record of their own
        self._buckets = TokenBuckets(MAX_KEYS)
        self._sums: dict[_Key, tuple[float, AuditRecord]] = {}

    @property
    def waiting(self) -> int:
        """The number of refusals in unpublished sums."""
        return sum(record.count for _, record in self._sums.values())

    def add(self, refusal: AuditRecord, now: float) -> AuditRecord | None:
        """Return the record to publish now, or None if the refusal was added to a sum."""
        key = (refusal.tenant, refusal.agent, refusal.outcome)
        if refusal.outcome not in AT_WILL or not self._buckets.draw(key, SINGLE, now):
            return refusal
        self.summed += 1
        begun, before = self._sums.get(key, (now, None))
        self._sums[key] = begun, replace(refusal, parameters=UNSET) if before is None else _joined(before, refusal)
        if len(self._sums) > MAX_KEYS:
            return self._sums.pop(next(iter(self._sums)))[1]
        return None

    def due(self, now: float) -> list[AuditRecord]:
        """Return the sums that are at least a second old. With `now` infinite, return all."""
        due = [key for key, (begun, _) in self._sums.items() if now >= begun + GATHER_SECONDS]
        return [self._sums.pop(key)[1] for key in due]


def _joined(sum_before: AuditRecord, refusal: AuditRecord) -> AuditRecord:
    """Add a refusal to a sum. `at` and `duration_ms` are those of the last refusal."""
    differing = [name for name in _COMMON if getattr(sum_before, name) != getattr(refusal, name)]
    nothing: dict[str, None] = dict.fromkeys(differing)
    return replace(refusal, parameters=UNSET, count=sum_before.count + refusal.count, **nothing)
