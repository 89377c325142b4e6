"""What the bucket holds of each gateway: its keys, their digest, the number of the last applied report, who is leaving.

Fed by the mirror in the bucket's own order, where all records of a report come before its number. So the digest at the
moment when a number arrives is the digest of that report, whichever registry applied it.
"""

from collections import OrderedDict

from protocol import subjects
from protocol.reports import Digest
from protocol.runtime.replica import Entry
from registry.applied import read_applied

HISTORY = 64


class Holding:
    """What is held of one gateway."""

    def __init__(self) -> None:
        self.number = 0
        self.leaving_since = 0  # the revision that says who is leaving; 0 where nobody is
        self.keys: dict[str, int] = {}
        self._digest = Digest()
        self._history: OrderedDict[int, str] = OrderedDict()

    @property
    def empty(self) -> bool:
        """Whether nothing is held, not even a number or who is leaving."""
        return not self.keys and not self.number and not self.leaving_since

    @property
    def digest(self) -> str:
        """The digest of what is held now."""
        return str(self._digest)

    def digest_at(self, number: int) -> str | None:
        """Return the digest of what was held when a report had just been applied; None where that is not known."""
        return self._history.get(number)

    def add(self, key: str, revision: int) -> None:
        """Take a client's record."""
        self.keys[key] = revision
        self._digest.toggle(key, revision)

    def drop(self, key: str) -> None:
        """Let go of a client's record."""
        self._digest.toggle(key, self.keys.pop(key))

    def reach(self, number: int) -> None:
        """Note that a report has been applied, or with 0 that the gateway was withdrawn."""
        self.number = number
        self._history.pop(number, None)
        self._history[number] = self.digest
        while len(self._history) > HISTORY:
            self._history.popitem(last=False)


class Holdings:
    """What is held of all gateways. Give `observe` to the mirror as its listener."""

    def __init__(self) -> None:
        self._of: dict[str, Holding] = {}

    def gateways(self) -> list[str]:
        """Return the ids of all gateways of which anything is held."""
        return list(self._of)

    def of(self, gateway_id: str) -> Holding:
        """Return what is held of a gateway."""
        return self._of.get(gateway_id) or Holding()

    def observe(self, key: str, before: Entry | None, after: Entry | None) -> None:
        """Take a piece of the mirror's news."""
        gateway_id = subjects.parse_gateway_key(key)
        if gateway_id is not None:
            self._observe_own(self._holding(gateway_id), after)
            self._forget_empty(gateway_id)
            return
        if before is not None and before.client is not None:
            self._holding(before.client.record.gateway_id).drop(key)
        if after is not None and after.client is not None:
            self._holding(after.client.record.gateway_id).add(key, after.client.record.revision)
        if before is not None and before.client is not None:
            self._forget_empty(before.client.record.gateway_id)

    def _observe_own(self, holding: Holding, own: Entry | None) -> None:
        applied = read_applied(own.data if own else None)
        holding.leaving_since = own.revision if own and applied.leaving else 0
        holding.reach(applied.number)

    def _holding(self, gateway_id: str) -> Holding:
        return self._of.setdefault(gateway_id, Holding())

    def _forget_empty(self, gateway_id: str) -> None:
        if self._holding(gateway_id).empty:
            del self._of[gateway_id]
