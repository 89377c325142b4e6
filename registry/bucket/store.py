"""Applies gateways' reports to the bucket.

Several registries share a queue group. So different registries may apply consecutive reports of a gateway, or two of
them the same report. Therefore every write names the revision that it replaces, and the number of the last applied
report is in the bucket, too, written after the report's records. Beside it are the sessions that a registry is removing
by itself, because no report is repeated if it dies before their announcement.
"""

import asyncio
import contextlib
from functools import partial
from weakref import WeakValueDictionary

import msgspec

from protocol import codec, subjects
from protocol.errors import Conflict, InvalidRequest, Unavailable
from protocol.ids import is_token
from protocol.records import ClientRecord
from protocol.reports import EndReason, Removal, Report, ReportAck
from protocol.runtime.clients.mirror import Mirror
from protocol.runtime.streams.bucket import Bucket, Value
from protocol.runtime.streams.jetstream import WrongRevision
from registry.bucket.announcements import Announcer
from registry.bucket.concurrency import for_each
from registry.bucket.entries import ClientEntries
from registry.bucket.gateway_entry import GatewayEntry, departures, read_gateway_entry
from registry.bucket.gateway_records import GatewayRecords

ANNOUNCED_SECONDS = 2.0  # as long as a gateway waits for an answer
SYNC_ANNOUNCED_SECONDS = 30.0  # all records of a gateway may be new


class Behind(Conflict):
    """Reports between the last applied one and this one are missing, so a sync is needed."""


class Before(msgspec.Struct, frozen=True):
    """A gateway's part of the bucket at the beginning of a sync: its own entry, and the revision of each client's."""

    own: Value
    held: dict[str, int]


class Store:
    """Applies reports, syncs and withdrawals. All methods raise `Unavailable` if JetStream does not answer."""

    def __init__(self, bucket: Bucket, mirror: Mirror, gateway_records: GatewayRecords, announcer: Announcer) -> None:
        self._bucket = bucket
        self._mirror = mirror
        self._gateway_records = gateway_records
        self._announcer = announcer
        self._entries = ClientEntries(bucket, mirror, announcer)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def apply(self, report: Report) -> ReportAck:
        """Apply a report and acknowledge it. A repeated report is acknowledged again without effect.

        The changes are announced before the acknowledgement. So if the registry dies or the answer is lost, the report
        is repeated, and its announcements with it.

        Raises `Conflict` for a report that does not follow the last applied one (`Behind` if others are missing), and
        `InvalidRequest` for malformed ids.
        """
        _check(report.gateway_id, report.records, report.removals)
        async with self._lock(report.gateway_id):
            # The lock is this registry's own. Against other registries only the entry's revision helps.
            own = await self._own_entry(report.gateway_id, report.number - 1)
            applied = read_gateway_entry(own.data)
            if _follows(report.number, applied.number):
                await for_each(applied.leaving, self._entries.tell_end)
                await for_each(report.records, partial(self._entries.tell, report))
                await for_each(report.removals, partial(self._entries.end, report.gateway_id))
                await self._announced(ANNOUNCED_SECONDS)
                await self._reach(report.gateway_id, report.number, own.revision)
        return ReportAck(report.number)

    async def before_sync(self, gateway_id: str) -> Before:
        """Return the state before a gateway's records are pulled, for `sync()`."""
        held = self._revisions(gateway_id)
        return Before(await self._bucket.read(subjects.gateway_key(gateway_id)), held)

    async def sync(self, gateway_id: str, number: int, records: list[ClientRecord], before: Before) -> None:
        """Make the bucket hold exactly these records of a gateway.

        Reports that were applied meanwhile stay applied, with their number. If a registry dies in a sync, no report is
        repeated. So records that were written after the last number are announced again, as `connected`, because the
        former state is unknown.
        """
        _check(gateway_id, records, [])
        async with self._lock(gateway_id):
            await for_each(read_gateway_entry(before.own.data).leaving, self._entries.tell_end)
            await for_each(records, partial(self._entries.upsert, announced=before.own.revision))
            live = {subjects.client_key(each.tenant, each.client_id) for each in records}
            gone = {key: revision for key, revision in before.held.items() if key not in live}
            own = await self._bucket.read(subjects.gateway_key(gateway_id))
            # A report that was applied during the pull is newer than the pulled records: keep its number.
            reached = number if own.revision == before.own.revision else read_gateway_entry(own.data).number
            with contextlib.suppress(WrongRevision):
                # If another registry syncs the same gateway, its result is as good as ours.
                own = await self._let_go(gateway_id, own, gone, EndReason.UNREPORTED)
                if read_gateway_entry(own.data) != GatewayEntry(reached):
                    await self._announced(SYNC_ANNOUNCED_SECONDS)
                    await self._write(gateway_id, GatewayEntry(reached), own.revision)

    async def withdraw(self, gateway_id: str) -> int:
        """Remove all records of a lost gateway, announce that, and return their number.

        Returns 0 if another registry does the same, or if the gateway has come back.
        """
        async with self._lock(gateway_id):
            own = await self._bucket.read(subjects.gateway_key(gateway_id))
            held = self._revisions(gateway_id)
            try:
                own = await self._let_go(gateway_id, own, held, EndReason.GATEWAY_LOST)
                if own.data is not None:
                    await self._announced(SYNC_ANNOUNCED_SECONDS)
                    await self._bucket.remove(subjects.gateway_key(gateway_id), own.revision)
            except WrongRevision:
                # Another registry withdraws the same records, or the gateway has come back and reported.
                return 0
            return len(held)

    async def _let_go(self, gateway_id: str, own: Value, held: dict[str, int], reason: EndReason) -> Value:
        """Remove records that are unchanged, and return the gateway's own entry afterwards.

        The entry lists them until they are announced, because this registry may die before that.
        """
        applied = read_gateway_entry(own.data)
        await for_each(applied.leaving, self._entries.tell_end)
        removals = (self._entries.removal(reason, key, revision) for key, revision in held.items())
        known = (removal for removal in removals if removal is not None)
        for batch in departures(known, self._bucket.max_value_bytes):
            await self._announced(SYNC_ANNOUNCED_SECONDS)
            own = await self._write(gateway_id, GatewayEntry(applied.number, batch), own.revision)
            await for_each(batch, partial(self._entries.let_go, held))
        return own

    async def _announced(self, seconds: float) -> None:
        """Wait until all changes so far are announced."""
        try:
            # Acknowledge nothing before: if this registry dies now, the gateway repeats the report to another one.
            async with asyncio.timeout(seconds):
                await self._announcer.drain()
        except TimeoutError as exc:
            raise Unavailable("the events stream does not take the announcements; try again in a moment") from exc

    async def _own_entry(self, gateway_id: str, expected_number: int) -> Value:
        """Return a gateway's own entry, from the mirror if that has the expected revision, which saves a request."""
        entry = self._mirror.entry(subjects.gateway_key(gateway_id))
        if entry is not None and read_gateway_entry(entry.data).number == expected_number:
            return Value(entry.revision, entry.data)
        return await self._bucket.read(subjects.gateway_key(gateway_id))

    async def _reach(self, gateway_id: str, number: int, revision: int) -> None:
        """Note that a report has been applied. Another registry may have applied the same one meanwhile."""
        try:
            await self._write(gateway_id, GatewayEntry(number), revision)
        except WrongRevision as exc:
            # It is fine if another registry has applied the same report, or a later one.
            own = await self._bucket.read(subjects.gateway_key(gateway_id))
            if read_gateway_entry(own.data).number < number:
                raise Conflict("another registry has applied a report meanwhile; send this one again") from exc

    async def _write(self, gateway_id: str, applied: GatewayEntry, revision: int) -> Value:
        data = codec.encode(applied)
        return Value(await self._bucket.put(subjects.gateway_key(gateway_id), data, revision), data)

    def _revisions(self, gateway_id: str) -> dict[str, int]:
        entries = ((key, self._mirror.entry(key)) for key in self._gateway_records.of(gateway_id).keys)
        return {key: entry.revision for key, entry in entries if entry is not None}

    def _lock(self, gateway_id: str) -> asyncio.Lock:
        return self._locks.setdefault(gateway_id, asyncio.Lock())


def _follows(number: int, applied: int) -> bool:
    """Return whether a report is the next one (True) or a repeated one (False). Raises `Conflict` for any other."""
    if number > applied + 1:
        raise Behind(f"report {number} does not follow report {applied}; the gateway will be synced")
    if number < applied:
        raise Conflict(f"report {number} is older than report {applied}, which has been applied")
    return number == applied + 1


def _check(gateway_id: str, records: list[ClientRecord], removals: list[Removal]) -> None:
    ids = [(record.tenant, record.client_id) for record in records]
    ids += [(removal.tenant, removal.client_id) for removal in removals]
    if not is_token(gateway_id) or not all(is_token(tenant) and is_token(client_id) for tenant, client_id in ids):
        raise InvalidRequest("`gatewayId`, `tenant` and `clientId` must be ids")
    if any(record.gateway_id != gateway_id for record in records):
        raise InvalidRequest("`records`: each must be the reporting gateway's own")
