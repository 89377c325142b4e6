"""A tenant's audit records, read page by page from a registry. The token must be an administrator's."""

import msgspec

from agentbridge.cli.registry_client import RegistryClient
from protocol.audit import AuditFilter, AuditPage, AuditPageRequest, AuditRecord, SequencedRecord, read_record
from protocol.runtime.streams.direct_get import StoredMessage
from protocol.runtime.streams.jetstream import StreamInfo, StreamState
from protocol.runtime.streams.positions import Position


class FoundRecord(msgspec.Struct, frozen=True):
    """A record and its stored bytes."""

    data: bytes
    record: AuditRecord


class AuditPages:
    """Reads the `wanted` records. Its methods raise the `BridgeError` in a registry's answer."""

    def __init__(self, registry: RegistryClient, wanted: AuditFilter) -> None:
        self._registry = registry
        self._wanted = wanted

    async def newest(self, limit: int, before: Position | None) -> tuple[list[FoundRecord], AuditPage]:
        """Return the newest records older than `before`, newest first, and the page that they come from."""
        below = None if before is None else str(before)
        page = await self._registry.audit(AuditPageRequest(wanted=self._wanted, limit=limit, before=below))
        found = ((bytes(each.record), read_record(bytes(each.record))) for each in page.records)
        return [FoundRecord(data, record) for data, record in found if record is not None], page

    async def info(self) -> StreamInfo:
        """Return the state of the stream."""
        return _info(await self._registry.audit(AuditPageRequest(wanted=self._wanted, limit=1)))

    async def forward(self, first: int, count: int) -> tuple[list[StoredMessage], StreamInfo, bool]:
        """Return the records from a sequence on, the stream's state afterwards, and whether more records follow."""
        page = await self._registry.audit(AuditPageRequest(wanted=self._wanted, limit=count, first=first))
        return [_message(each) for each in page.records], _info(page), page.more


def _info(page: AuditPage) -> StreamInfo:
    return StreamInfo({}, page.created, StreamState(page.last_sequence, page.first_sequence))


def _message(stored: SequencedRecord) -> StoredMessage:
    return StoredMessage(stored.sequence, "", "", bytes(stored.record))
