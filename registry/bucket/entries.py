"""One client's entry in the bucket: written if it is newer, removed if it is unchanged, and announced.

Every write names the revision that it replaces, and only a higher session revision replaces a record, from whichever
gateway. So a stale gateway never overwrites a client's new gateway.
"""

import asyncio
import logging
from collections.abc import Mapping

import msgspec

from protocol import codec, subjects
from protocol.errors import BridgeError, PayloadTooLarge, Unavailable
from protocol.records import ClientRecord
from protocol.reports import REASON_HEADER, EndReason, Removal, Report
from protocol.runtime.clients.mirror import Mirror
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.streams.bucket import NOTHING, Bucket
from protocol.runtime.streams.jetstream import WrongRevision
from registry.bucket.announcements import Announcer, Change

ATTEMPTS = 5
LOG_SECONDS = 1.0

log = logging.getLogger(__name__)
_records = msgspec.json.Decoder(ClientRecord)


class _StoredRecord(msgspec.Struct, frozen=True):
    """A client's entry in the bucket: its record, or None, and the revision to write over."""

    revision: int
    record: ClientRecord | None

    @property
    def app_name(self) -> str | None:
        return self.record.app_name if self.record else None

    def change_to(self, after: ClientRecord) -> Change:
        """Return the change between two records: the client came back, was detached, or was updated."""
        before = self.record
        moved = before is not None and before.gateway_id != after.gateway_id and not after.is_detached
        return _change(after, was_away=moved or (before is not None and before.is_detached))


class ClientEntries:
    """Writes, removes and announces clients. All methods raise `Unavailable` if JetStream does not answer."""

    def __init__(self, bucket: Bucket, mirror: Mirror, announcer: Announcer) -> None:
        self._bucket = bucket
        self._mirror = mirror
        self._announcer = announcer
        self._too_large_lines = LogThrottle(LOG_SECONDS, asyncio.get_running_loop().time)

    async def tell(self, report: Report, record: ClientRecord) -> None:
        """Write a reported record. If it is there already, announce it again, because that may have failed before."""
        key = subjects.client_key(record.tenant, record.client_id)
        await self.upsert(record, former=report.former.get(key), was_away=key in report.were_detached)

    async def upsert(
        self, record: ClientRecord, *, announced: int = NOTHING, former: str | None = None, was_away: bool = False
    ) -> None:
        """Write a record if it is newer. Announce an existing one again if its revision is later than `announced`.

        `former` is the application's name in the last report, or None in the first one. `was_away`: the client had no
        connection then.
        """
        key = subjects.client_key(record.tenant, record.client_id)
        stored = self._seen(key)
        for _ in range(ATTEMPTS):
            if stored.record is not None and record.revision <= stored.record.revision:
                if stored.record.gateway_id == record.gateway_id and stored.revision > announced:
                    change = _change(stored.record, was_away=was_away)
                    await self._announce(former, stored.record, stored.revision, change)
                return None
            try:
                revision = await self._put(key, record, stored.revision)
            except WrongRevision:
                stored = await self._read(key)
            else:
                return await self._announce(stored.app_name, record, revision, stored.change_to(record))
        raise _contended()

    async def _put(self, key: str, record: ClientRecord, expected: int) -> int:
        """Write a record. If it is larger than NATS takes, write it without capabilities and metadata.

        If it were refused instead, its report would be repeated for ever, and all later ones would wait.
        """
        try:
            return await self._bucket.put(key, codec.encode(record), expected)
        except PayloadTooLarge as exc:
            if count := self._too_large_lines.due():
                log.error("%d records were stored without capabilities, the last of %s: %s", count, key, exc.message)
            return await self._bucket.put(key, codec.encode(record.reduced()), expected)

    async def _announce(self, former: str | None, after: ClientRecord, revision: int, change: Change) -> None:
        if former is None:
            await self._announcer.announce("connected", after, revision)
        else:
            await self._announcer.announce_update(former, after, revision, change)

    async def end(self, gateway_id: str, removal: Removal) -> None:
        """Remove the record of an ended session, unless another gateway has the client by now.

        If it is removed already, announce that again with the revision of its delete marker.
        """
        key = subjects.client_key(removal.tenant, removal.client_id)
        stored = self._seen(key)
        for _ in range(ATTEMPTS):
            if stored.record is None:
                # The mirror may not have it yet.
                stored = await self._read(key)
            if stored.record is None:
                return await self._announce_end(removal, stored.revision)
            if stored.record.gateway_id != gateway_id:
                return None
            if await self._remove(key, stored.record, stored.revision, removal.reason):
                return None
            stored = await self._read(key)
        raise _contended()

    def removal(self, reason: EndReason, key: str, revision: int) -> Removal | None:
        """Return the removal of a record, or None if the record has changed since this revision."""
        stored = self._seen(key)
        gone = stored.record
        if gone is None or stored.revision != revision:
            return None
        return Removal(gone.tenant, gone.client_id, reason, gone.user, gone.app_name, gone.revision)

    async def let_go(self, revisions: Mapping[str, int], removal: Removal) -> None:
        """Remove a record if it still has its revision. Otherwise leave it to the later writer."""
        key = subjects.client_key(removal.tenant, removal.client_id)
        stored = self._seen(key)
        if stored.record is not None and stored.revision == revisions[key]:
            await self._remove(key, stored.record, stored.revision, removal.reason)

    async def tell_end(self, removal: Removal) -> None:
        """Announce the end of a session whose record is removed, with the revision of the delete marker."""
        stored = await self._read(subjects.client_key(removal.tenant, removal.client_id))
        if stored.record is None:
            await self._announce_end(removal, stored.revision)

    async def _remove(self, key: str, record: ClientRecord, revision: int, reason: str) -> bool:
        """Remove a record and announce it. Return whether it still had this revision."""
        try:
            marker = await self._bucket.remove(key, revision, {REASON_HEADER: reason})
        except WrongRevision:
            return False
        await self._announcer.announce("disconnected", record, marker, reason)
        return True

    async def _announce_end(self, removal: Removal, revision: int) -> None:
        if removal.revision:
            # Older gateways leave out the user and the application.
            await self._announcer.announce("disconnected", removal, revision, removal.reason)

    def _seen(self, key: str) -> _StoredRecord:
        """Return the mirror's entry. A write over it fails if the bucket has moved on."""
        entry = self._mirror.entry(key)
        if entry is None or entry.client is None:
            return _StoredRecord(NOTHING, None)
        return _StoredRecord(entry.revision, entry.client.record)

    async def _read(self, key: str) -> _StoredRecord:
        value = await self._bucket.read(key)
        try:
            return _StoredRecord(value.revision, codec.decode(_records, value.data) if value.data else None)
        except BridgeError:
            log.warning("the record %s cannot be read; the next one replaces it", key)
            return _StoredRecord(value.revision, None)


def _change(after: ClientRecord, *, was_away: bool) -> Change:
    if after.is_detached:
        return "updated" if was_away else "detached"
    return "resumed" if was_away else "updated"


def _contended() -> Unavailable:
    return Unavailable("too many writers at once; try again in a moment")
