"""Answers administrators' requests for their tenant's audit records: `agentbridge.T.registry.audit`.

NATS cannot permit an agent's user to read one tenant's part of a stream, so a registry reads for it.
"""

import msgspec
from nats.aio.msg import Msg

from protocol import codec, subjects
from protocol.access import Principal, require_admin
from protocol.audit import AuditFilter, AuditPage, AuditPageRequest, SequencedRecord, instant, read_record
from protocol.errors import InvalidRequest, PermissionDenied
from protocol.ids import check_token
from protocol.runtime.commands.audit_history import AuditHistory
from protocol.runtime.streams.positions import parse_position
from protocol.runtime.streams.stores import audit_of

MAX_PAGE_BYTES = 512 * 1024


class _FilterAsWritten(msgspec.Struct):
    """The filter as the administrator wrote it, to be searched for misspelt fields."""

    wanted: msgspec.Raw = msgspec.Raw(b"{}")


_requests = msgspec.json.Decoder(AuditPageRequest)
_wanted = msgspec.json.Decoder(_FilterAsWritten)


class AuditReading:
    """Answers pages of records, newest first, or from a sequence on."""

    def __init__(self, history: AuditHistory) -> None:
        self._history = history

    async def start(self) -> None:
        """Subscribe for the stream's answers."""
        await self._history.start()

    async def answer(self, principal: Principal, msg: Msg) -> bytes:
        """Return a page for an administrator. Raises `PermissionDenied` for other callers."""
        asked = _read(principal, msg)
        page = await (self._backwards(principal, asked) if asked.first is None else self._forwards(principal, asked))
        return codec.encode(page)

    async def _backwards(self, principal: Principal, asked: AuditPageRequest) -> AuditPage:
        before = None if asked.before is None else parse_position(asked.before)
        if asked.before is not None and before is None:
            raise InvalidRequest("`before`: must be the `reached` position of a page")
        page = await self._history.page(principal.tenant, asked.wanted, asked.limit, before)
        fitting = _fitting([SequencedRecord(each.position.sequence, msgspec.Raw(each.data)) for each in page.found])
        cut = len(fitting) < len(page.found)
        reached = page.found[len(fitting) - 1].position if cut else page.reached
        info = await self._history.info(principal.tenant)
        first, last = info.state.first_seq, info.state.last_seq
        return AuditPage(info.created, first, last, fitting, str(reached), more=page.more or cut)

    async def _forwards(self, principal: Principal, asked: AuditPageRequest) -> AuditPage:
        assert asked.first is not None
        if not (await self._history.info(principal.tenant)).created:
            return AuditPage("", 0, 0, [])  # the tenant has no stream yet
        stream, subject = audit_of(principal.tenant).stream, asked.wanted.subject(principal.tenant)
        found = await self._history.forward(stream, subject, asked.first, asked.limit)
        # Ask after the page was read: a record that is there now was there during the read, too.
        info = await self._history.info(principal.tenant)
        fitting = _fitting([SequencedRecord(each.sequence, _ours(each.data)) for each in found])
        more = len(fitting) < len(found) or len(found) == asked.limit
        return AuditPage(info.created, info.state.first_seq, info.state.last_seq, fitting, more=more)


def _read(principal: Principal, msg: Msg) -> AuditPageRequest:
    """Decode the request. Raises `PermissionDenied`, and `InvalidRequest` for a value that no subject can have."""
    require_admin(principal)
    tenant, _ = subjects.parse_registry(msg.subject)
    if tenant != principal.tenant:
        raise PermissionDenied("this token is of another tenant")
    data = msg.data or b"{}"
    asked = codec.decode(_requests, data)
    codec.refuse_near_misses(data, asked.__struct_encode_fields__)
    codec.refuse_near_misses(bytes(codec.decode(_wanted, data).wanted), asked.wanted.__struct_encode_fields__)
    return msgspec.structs.replace(asked, wanted=_checked(asked.wanted))


def _checked(wanted: AuditFilter) -> AuditFilter:
    if wanted.client_id not in (None, subjects.NO_CLIENT):
        check_token(str(wanted.client_id), "`clientId`")
    if wanted.outcome is not None:
        check_token(wanted.outcome, "`outcome`")
    since = None if wanted.since is None else instant(wanted.since, "`since`")
    until = None if wanted.until is None else instant(wanted.until, "`until`")
    return msgspec.structs.replace(wanted, since=since, until=until)


def _ours(data: bytes) -> msgspec.Raw:
    return msgspec.Raw(b"null" if read_record(data) is None else data)


def _fitting(records: list[SequencedRecord]) -> list[SequencedRecord]:
    """Return as many of the first records as fit into one message, at least one."""
    size = 0
    for count, each in enumerate(records):
        size += len(memoryview(each.record)) + 64
        if count and size > MAX_PAGE_BYTES:
            return records[:count]
    return records
