"""Audit records: caller, client, target and outcome of each command.

The process that decides an outcome writes the record: the gateway for every command that reached one, the agent API for
a command that ended before that or whose gateway was lost. A record never holds a token, an error's sentence or an
idempotency key, because each of them may carry secrets. It holds parameters only if the settings ask for them.
"""

import datetime
from typing import Annotated

import msgspec

from protocol import subjects
from protocol.access import Principal
from protocol.codec import decode, raw_bytes
from protocol.errors import InvalidRequest
from protocol.messages import CommandRequest, timestamp

SUCCESS = "success"
USER = "user"  # `confirmed`: the application says that its user has agreed
GATEWAY, AGENT_API, REGISTRY = "gateway", "agent_api", "registry"
MAX_PARAMETERS_BYTES = 4096
MAX_CODE_CHARS = 128
DEFAULT_PAGE, MAX_PAGE = 100, 1000
_FIRST_SECOND, _LAST_SECOND = 86_400, 253_370_764_800  # of 1970-01-02 and 9999-01-01


class AuditRecord(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """The outcome of a command: `success` or an error code. `code` is the application's own, if it reported an error.

    - `at`: time of the decision (RFC 3339, UTC); `duration_ms`: the command's duration until then; `by`: the process.
    - `user`, `app`: the client's; `agent`: the `sub` of the caller's token. They are absent if they are unknown.
    - `replayed`: the answer was the outcome of an earlier request under the same idempotency key.
    - `confirmed`: `user` if the application says that its user agreed first.
    - `count`: the number of refusals in this record. They have one `agent`, one `outcome` and one second in common. A
      field that differs among them is absent.
    - `disconnected`: the `sub` of an agent that `agent`, an administrator, has disconnected. Then there is no target.

    The record does not tell over which transport the command came, because nothing proves it: any NATS user may choose
    any reply subject.
    """

    at: str
    tenant: str
    outcome: str
    duration_ms: int
    by: str
    client_id: str | None = None
    user: str | None = None
    app: str | None = None
    agent: str | None = None
    role: str | None = None
    target: str | None = None
    action: str | None = None
    request_id: str | None = None
    code: str | None = None
    replayed: bool = False
    parameters: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    confirmed: str | None = None
    count: int = 1
    disconnected: str | None = None

    @property
    def owner(self) -> str:
        """The tenant in whose audit the record belongs, or `_strangers` if the caller had no good token.

        Otherwise callers without a token could fill a tenant's audit.
        """
        return subjects.STRANGERS if self.agent is None else self.tenant

    @property
    def subject(self) -> str:
        """The subject on which the record is published."""
        return subjects.audit(self.owner, self.client_id or subjects.NO_CLIENT, self.outcome)


class Asked(msgspec.Struct, frozen=True, gc=False):
    """The part of a record that is known while its command is in flight. It has `parameters` only if they are recorded.

    `request_id` is the id that the caller knows, even if the command has another one on the wire.
    """

    role: str
    target: str
    action: str | None
    parameters: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    request_id: str | None = None


def asked_by(caller: Principal, command: CommandRequest, *, with_parameters: bool) -> Asked:
    """Return the part of a record that comes from the command itself."""
    parameters = kept_parameters(command.parameters) if with_parameters else msgspec.UNSET
    return Asked(caller.role, command.target, command.action, parameters, command.caller_request_id)


def kept_parameters(parameters: msgspec.Raw) -> msgspec.Raw:
    """Return the parameters for a record, or only their size if they are large.

    They are copied, because a view would keep the whole message in memory.
    """
    size = len(memoryview(parameters))
    if size > MAX_PARAMETERS_BYTES:
        return msgspec.Raw(b'"%d bytes"' % size)
    return msgspec.Raw(raw_bytes(parameters))


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Selects records. Every field narrows. `since` and `until` have the form of `at`, and both are included."""

    client_id: str | None = None
    agent: str | None = None
    target: str | None = None
    outcome: str | None = None
    since: str | None = None
    until: str | None = None

    def subject(self, tenant: str) -> str:
        """Return the narrowest subject that covers all selected records."""
        return subjects.audit(tenant, self.client_id or "*", self.outcome or "*")

    def wants(self, record: AuditRecord) -> bool:
        """Tell whether the filter selects a record."""
        return (
            (self.client_id is None or self.client_id == (record.client_id or subjects.NO_CLIENT))
            and (self.agent is None or self.agent == record.agent)
            and (self.target is None or self.target == record.target)
            and (self.outcome is None or self.outcome == record.outcome)
            and (self.since is None or self.since <= record.at)
            and (self.until is None or record.at <= self.until)
        )


class AuditPageRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Asks a registry for a page of a tenant's records: the newest, older than the position `before` if that is given.

    With `first`, asks for the oldest from that sequence of the tenant's own stream on. Then only the fields `client_id`
    and `outcome` of `wanted` count.
    """

    wanted: AuditFilter = AuditFilter()
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE
    before: str | None = None
    first: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


class SequencedRecord(msgspec.Struct, frozen=True, rename="camel"):
    """A record with its sequence in the stream. `record` is null if the message is not an audit record."""

    sequence: int
    record: msgspec.Raw


class AuditPage(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A registry's answer: records in the requested order, and the state of the stream afterwards.

    `reached` is the oldest position that was searched, in a page of the newest. `more`: further records may exist.
    """

    created: str
    first_sequence: int
    last_sequence: int
    records: list[SequencedRecord]
    reached: str = ""
    more: bool = False


def instant(text: str, where: str) -> str:
    """Convert an instant in RFC 3339 to the form of `at`. Raises `InvalidRequest` that names `where` for other text.

    A time beyond the range of RFC 3339 is moved to its edge, a leap second to the second before it.
    """
    try:
        parsed = datetime.datetime.fromisoformat(text.upper().replace(":60", ":59"))
        if parsed.tzinfo is None:
            raise ValueError
    except ValueError as exc:
        raise InvalidRequest(f"{where}: must be an instant such as 2026-01-31T12:00:00Z") from exc
    return timestamp(min(max(parsed.timestamp(), _FIRST_SECOND), _LAST_SECOND))


def read_record(data: bytes) -> AuditRecord | None:
    """Decode a stored record. Return None if it is not an audit record."""
    try:
        return decode(_decoder, data)
    except InvalidRequest:
        return None


_decoder = msgspec.json.Decoder(AuditRecord)
