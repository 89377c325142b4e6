"""Whether what the bucket holds of a gateway has drifted from what the gateway says. Sans-I/O.

One mismatch proves nothing: a report may be under way. Two in a row do, unless a report that follows the last applied
one is still under way: the gateway repeats it, and what is half done will be done, and announced, then.
"""

from protocol.reports import GatewayPong
from registry.holdings import Holding

MISMATCHES = 2


class Drift:
    """Compares a gateway's pongs with what is held."""

    def __init__(self) -> None:
        self._mismatches = 0
        self._last_pong: int | None = None
        self._last_number: int | None = None

    def weigh(self, pong: GatewayPong, holding: Holding) -> bool:
        """Return whether the gateway must be synced."""
        agrees = self._agrees(pong, holding)
        self._last_pong, self._last_number = pong.number, holding.number
        if agrees is not None:
            self._mismatches = 0 if agrees else self._mismatches + 1
        return self._mismatches >= MISMATCHES

    def reset(self) -> None:
        """Forget what was seen: a sync has begun."""
        self._mismatches = 0
        self._last_pong = None

    def _agrees(self, pong: GatewayPong, holding: Holding) -> bool | None:
        """Return None where this pong says nothing."""
        if pong.number == holding.number == self._last_pong:  # at rest: anything written since the report counts
            return pong.digest == holding.digest or (None if pong.reporting else False)
        digest = holding.digest_at(pong.number)
        if digest is None and holding.number != self._last_number:  # behind, but moving
            return None
        return pong.digest == digest
