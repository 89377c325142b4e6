"""Detects that a gateway's part of the bucket differs from the gateway's own digest. Sans-I/O.

One mismatch proves nothing, because a report may be in flight. Two in a row count, unless the report after the last
applied one is still in flight: the gateway will repeat it, and that completes and announces everything.

There is a second sign, for a registry that died in a sync, between listing the leaving sessions and announcing them. No
report is repeated then. A living registry announces them within moments. If the list is still there after ten pongs, a
second sync repeats the announcements.
"""

from protocol.reports import GatewayPong
from registry.bucket.gateway_records import GatewayRecord

MISMATCHES = 2
LEFT_OVER_PONGS = 10  # five seconds


class Drift:
    """Compares a gateway's pongs with its part of the bucket."""

    def __init__(self) -> None:
        self._mismatches = 0
        self._last_pong: int | None = None
        self._last_number: int | None = None
        self._leaving_since = 0
        self._pongs_since = 0

    def weigh(self, pong: GatewayPong, holding: GatewayRecord) -> bool:
        """Compare a pong. Return whether the gateway must be synced."""
        agrees = self._agrees(pong, holding)
        self._last_pong, self._last_number = pong.number, holding.number
        if agrees is not None:
            self._mismatches = 0 if agrees else self._mismatches + 1
        is_left_over = self._is_left_over(holding)
        return self._mismatches >= MISMATCHES or is_left_over

    def reset(self) -> None:
        """Forget all mismatches, because a sync has begun."""
        self._mismatches = 0
        self._last_pong = None
        self._pongs_since = 0

    def _is_left_over(self, holding: GatewayRecord) -> bool:
        """Tell whether leaving sessions have been listed for ten pongs, so that their registry has probably died."""
        same = holding.leaving_since and holding.leaving_since == self._leaving_since
        self._leaving_since = holding.leaving_since
        self._pongs_since = self._pongs_since + 1 if same else 0
        return self._pongs_since >= LEFT_OVER_PONGS

    def _agrees(self, pong: GatewayPong, holding: GatewayRecord) -> bool | None:
        """Return whether the digests agree, or None if this pong proves nothing."""
        if pong.number == holding.number == self._last_pong:  # at rest: anything written since the report counts
            return pong.digest == holding.digest or (None if pong.reporting else False)
        digest = holding.digest_at(pong.number)
        if digest is None and holding.number != self._last_number:  # behind, but moving
            return None
        return pong.digest == digest
