"""Each gateway's part of the bucket: keys, their digest, the number of the last applied report, leaving sessions.

The mirror feeds it in the bucket's own order, in which all records of a report come before its number. So the digest at
the moment when a number arrives is the digest of that report, whichever registry applied it.
"""

from collections import OrderedDict

from protocol import subjects
from protocol.reports import Digest
from protocol.runtime.clients.replica import ReplicaEntry
from registry.bucket.gateway_entry import read_gateway_entry

HISTORY = 64


class GatewayRecord:
    """The part of the bucket that belongs to one gateway."""

    def __init__(self) -> None:
        self.number = 0
        self.leaving_since = 0  # the revision that lists the leaving sessions; 0 if there are none
        self.keys: dict[str, int] = {}
        self._digest = Digest()
        self._history: OrderedDict[int, str] = OrderedDict()

    @property
    def empty(self) -> bool:
        """Whether there is nothing: no records, no number, no leaving sessions."""
        return not self.keys and not self.number and not self.leaving_since

    @property
    def digest(self) -> str:
        """The digest of the present keys."""
        return str(self._digest)

    def digest_at(self, number: int) -> str | None:
        """Return the digest directly after a report was applied, or None if it is unknown."""
        return self._history.get(number)

    def add(self, key: str, revision: int) -> None:
        """Add a client's record."""
        self.keys[key] = revision
        self._digest.toggle(key, revision)

    def drop(self, key: str) -> None:
        """Remove a client's record."""
        self._digest.toggle(key, self.keys.pop(key))

    def reach(self, number: int) -> None:
        """Note that a report has been applied; with 0, that the gateway was withdrawn."""
        self.number = number
        self._history.pop(number, None)
        self._history[number] = self.digest
        while len(self._history) > HISTORY:
            self._history.popitem(last=False)


class GatewayRecords:
    """The parts of all gateways. Pass `observe` to the mirror as a listener."""

    def __init__(self) -> None:
        self._of: dict[str, GatewayRecord] = {}

    def gateways(self) -> list[str]:
        """Return the ids of all gateways that have a part."""
        return list(self._of)

    def of(self, gateway_id: str) -> GatewayRecord:
        """Return a gateway's part."""
        return self._of.get(gateway_id) or GatewayRecord()

    def observe(self, key: str, before: ReplicaEntry | None, after: ReplicaEntry | None) -> None:
        """Take a change from the mirror."""
        gateway_id = subjects.parse_gateway_key(key)
        if gateway_id is not None:
            self._observe_own(self._gateway_record(gateway_id), after)
            self._forget_empty(gateway_id)
            return
        if before is not None and before.client is not None:
            self._gateway_record(before.client.record.gateway_id).drop(key)
        if after is not None and after.client is not None:
            self._gateway_record(after.client.record.gateway_id).add(key, after.client.record.revision)
        if before is not None and before.client is not None:
            self._forget_empty(before.client.record.gateway_id)

    def _observe_own(self, holding: GatewayRecord, own: ReplicaEntry | None) -> None:
        applied = read_gateway_entry(own.data if own else None)
        holding.leaving_since = own.revision if own and applied.leaving else 0
        holding.reach(applied.number)

    def _gateway_record(self, gateway_id: str) -> GatewayRecord:
        return self._of.setdefault(gateway_id, GatewayRecord())

    def _forget_empty(self, gateway_id: str) -> None:
        if self._gateway_record(gateway_id).empty:
            del self._of[gateway_id]
