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
USER = "user"  # who has confirmed a command, as the application says
GATEWAY, AGENT_API, REGISTRY = "gateway", "agent_api", "registry"
MAX_PARAMETERS_BYTES = 4096
MAX_CODE_CHARS = 128
DEFAULT_PAGE, MAX_PAGE = 100, 1000
_FIRST_SECOND, _LAST_SECOND = 86_400, 253_370_764_800  # of 1970-01-02 and 9999-01-01


class AuditRecord(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """A command's outcome: `success` or an error code; `code` is the application's own, if the command failed there.

    `at` is the time of the decision (RFC 3339, UTC), `duration_ms` the command's duration until then, `by` the process
    that decided. `user` and `app` are the client's, `agent` is the `sub` of the caller's token; they are absent if they
    were not known. `replayed` is true if the command was answered with the outcome of an earlier request under the same
    idempotency key. `confirmed` is `user` if the application says that its user agreed first. `count` is the number of
    refusals that the record stands for, all of one `agent` and `outcome` and of one second; a field that differs among
    them is absent. `disconnected` is the `sub` of an agent that an administrator, `agent`, has disconnected: then there
    is no target. How the command came to the gateway is not recorded, because nothing proves it: any NATS user may name
    any reply.
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
        """The tenant in whose audit the record belongs; nobody's if no good token said who was asking.

        Else those without a token could fill the audit of a tenant.
        """
        return subjects.STRANGERS if self.agent is None else self.tenant

    @property
    def subject(self) -> str:
        """Where the record is published."""
        return subjects.audit(self.owner, self.client_id or subjects.NO_CLIENT, self.outcome)


class Asked(msgspec.Struct, frozen=True, gc=False):
    """The part of a record that is known while its command is in flight; `parameters` only if they are recorded.

    `request_id` is the caller's own id, if the command travels under another one.
    """

    role: str
    target: str
    action: str | None
    parameters: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    request_id: str | None = None


def asked_by(caller: Principal, command: CommandRequest, *, with_parameters: bool) -> Asked:
    """Return the parts of a record that a command itself decides."""
    parameters = kept_parameters(command.parameters) if with_parameters else msgspec.UNSET
    return Asked(caller.role, command.target, command.action, parameters, command.caller_request_id)


def kept_parameters(parameters: msgspec.Raw) -> msgspec.Raw:
    """Return a copy of parameters for a record, for a view would hold their whole message; of large ones the size."""
    size = len(memoryview(parameters))
    if size > MAX_PARAMETERS_BYTES:
        return msgspec.Raw(b'"%d bytes"' % size)
    return msgspec.Raw(raw_bytes(parameters))


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Which records are wanted; every field narrows. `since` and `until` are written as `at` is, both included."""

    client_id: str | None = None
    agent: str | None = None
    target: str | None = None
    outcome: str | None = None
    since: str | None = None
    until: str | None = None

    def subject(self, tenant: str) -> str:
        """Return the narrowest subject on which everything that is wanted is published."""
        return subjects.audit(tenant, self.client_id or "*", self.outcome or "*")

    def wants(self, record: AuditRecord) -> bool:
        """Tell whether a record passes."""
        return (
            (self.client_id is None or self.client_id == (record.client_id or subjects.NO_CLIENT))
            and (self.agent is None or self.agent == record.agent)
            and (self.target is None or self.target == record.target)
            and (self.outcome is None or self.outcome == record.outcome)
            and (self.since is None or self.since <= record.at)
            and (self.until is None or record.at <= self.until)
        )


class AuditPageRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A page of a tenant's records, asked of a registry: the newest, of those below the position `before` if given.

    With `first`, the oldest from that sequence of the own stream on. Then only `client_id` and `outcome` narrow.
    """

    wanted: AuditFilter = AuditFilter()
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE
    before: str | None = None
    first: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


class SequencedRecord(msgspec.Struct, frozen=True, rename="camel"):
    """A record with its sequence in the stream; `record` is null for what is no record of ours."""

    sequence: int
    record: msgspec.Raw


class AuditPage(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a registry answers: records in the order in which they were asked for, and what the stream holds since.

    Backwards, all from the position `reached` on were looked through. `more` tells whether there are others.
    """

    created: str
    first_sequence: int
    last_sequence: int
    records: list[SequencedRecord]
    reached: str = ""
    more: bool = False


def instant(text: str, where: str) -> str:
    """Return an instant of RFC 3339 as `at` is written; raise `InvalidRequest` naming `where` for anything else.

    A time outside the range of RFC 3339 is moved to its edge, a leap second to the second before.
    """
    try:
        parsed = datetime.datetime.fromisoformat(text.upper().replace(":60", ":59"))
        if parsed.tzinfo is None:
            raise ValueError
    except ValueError as exc:
        raise InvalidRequest(f"{where}: must be an instant such as 2026-01-31T12:00:00Z") from exc
    return timestamp(min(max(parsed.timestamp(), _FIRST_SECOND), _LAST_SECOND))


def read_record(data: bytes) -> AuditRecord | None:
    """Decode a stored record; return None if it is not one."""
    try:
        return decode(_decoder, data)
    except InvalidRequest:
        return None


_decoder = msgspec.json.Decoder(AuditRecord)
