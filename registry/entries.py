"""One client's entry in the bucket: written where it is newer, removed where it is still the same, and announced.

Every write names the revision it replaces. A record only ever gives way to a higher session revision, whoever reports
it, so a stale gateway never overwrites a client's new owner.
"""

import logging
from collections.abc import Mapping

import msgspec

from protocol import codec, subjects
from protocol.errors import BridgeError, Unavailable
from protocol.records import ClientRecord
from protocol.reports import EndReason, Removal
from protocol.runtime.bucket import NOTHING, Bucket
from protocol.runtime.jetstream import WrongRevision
from protocol.runtime.mirror import Mirror
from registry.announcements import Announcer

ATTEMPTS = 5

log = logging.getLogger(__name__)
_records = msgspec.json.Decoder(ClientRecord)


class _Stored(msgspec.Struct, frozen=True):
    """What the bucket holds of a client: its record, None where there is none, and the revision to write over."""

    revision: int
    record: ClientRecord | None

    @property
    def app_name(self) -> str | None:
        return self.record.app_name if self.record else None


class Entries:
    """Writes, removes and announces clients. All raise `Unavailable` where JetStream does not answer."""

    def __init__(self, bucket: Bucket, mirror: Mirror, announcer: Announcer) -> None:
        self._bucket = bucket
        self._mirror = mirror
        self._announcer = announcer

    async def tell(self, former: dict[str, str], record: ClientRecord) -> None:
        """Write a reported record. One that is there already may not have been announced: say it again."""
        await self.upsert(record, former=former.get(subjects.client_key(record.tenant, record.client_id)))

    async def upsert(self, record: ClientRecord, *, announced: int = NOTHING, former: str | None = None) -> None:
        """Write a record where it is newer. Say again what is there already, if later than the revision `announced`.

        `former` is what the application called itself in the report before, None where this is the first.
        """
        key = subjects.client_key(record.tenant, record.client_id)
        stored = self._seen(key)
        for _ in range(ATTEMPTS):
            if stored.record is not None and record.revision <= stored.record.revision:
                if stored.record.gateway_id == record.gateway_id and stored.revision > announced:
                    await self._announce(former, stored.record, stored.revision)
                return None
            try:
                revision = await self._bucket.put(key, codec.encode(record), stored.revision)
            except WrongRevision:
                stored = await self._read(key)
            else:
                return await self._announce(stored.app_name, record, revision)
        raise _contended()

    async def _announce(self, former: str | None, after: ClientRecord, revision: int) -> None:
        if former is None:
            await self._announcer.announce("connected", after, revision)
        else:
            await self._announcer.announce_update(former, after, revision)

    async def end(self, gateway_id: str, removal: Removal) -> None:
        """Remove the record of a session that has ended, unless the client has another owner by now.

        One that is gone already may not have been announced: say it again, by the revision of the marker.
        """
        key = subjects.client_key(removal.tenant, removal.client_id)
        stored = self._seen(key)
        for _ in range(ATTEMPTS):
            if stored.record is None:
                stored = await self._read(key)  # the mirror may not have heard of it yet
            if stored.record is None:
                return await self._announce_end(removal, stored.revision)
            if stored.record.gateway_id != gateway_id:
                return None
            if await self._remove(key, stored.record, stored.revision, removal.reason):
                return None
            stored = await self._read(key)
        raise _contended()

    def removal(self, reason: EndReason, key: str, revision: int) -> Removal | None:
        """Return what removing a record would be; None where it is not any more as it was at this revision."""
        stored = self._seen(key)
        gone = stored.record
        if gone is None or stored.revision != revision:
            return None
        return Removal(gone.tenant, gone.client_id, reason, gone.user, gone.app_name, gone.revision)

    async def let_go(self, revisions: Mapping[str, int], removal: Removal) -> None:
        """Remove a record that is still as it was at its revision; whoever changed it since knows better."""
        key = subjects.client_key(removal.tenant, removal.client_id)
        stored = self._seen(key)
        if stored.record is not None and stored.revision == revisions[key]:
            await self._remove(key, stored.record, stored.revision, removal.reason)

    async def tell_end(self, removal: Removal) -> None:
        """Announce that a session has ended, where its record is gone, by the revision of the marker."""
        stored = await self._read(subjects.client_key(removal.tenant, removal.client_id))
        if stored.record is None:
            await self._announce_end(removal, stored.revision)

    async def _remove(self, key: str, record: ClientRecord, revision: int, reason: str) -> bool:
        """Remove a record and announce it; return whether it still was at this revision."""
        try:
            marker = await self._bucket.remove(key, revision)
        except WrongRevision:
            return False
        await self._announcer.announce("disconnected", record, marker, reason)
        return True

    async def _announce_end(self, removal: Removal, revision: int) -> None:
        if removal.revision:  # older gateways do not tell whose session it was
            await self._announcer.announce("disconnected", removal, revision, removal.reason)

    def _seen(self, key: str) -> _Stored:
        """Return what the mirror has; a write over it fails where the bucket has moved on."""
        entry = self._mirror.entry(key)
        if entry is None or entry.client is None:
            return _Stored(NOTHING, None)
        return _Stored(entry.revision, entry.client.record)

    async def _read(self, key: str) -> _Stored:
        value = await self._bucket.read(key)
        try:
            return _Stored(value.revision, codec.decode(_records, value.data) if value.data else None)
        except BridgeError:
            log.warning("the record %s cannot be read; it gives way to the next", key)
            return _Stored(value.revision, None)


def _contended() -> Unavailable:
    return Unavailable("too many writers at once; try again in a moment")
