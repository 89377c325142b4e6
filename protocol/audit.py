"""What is recorded of a command: who asked whom for what, and how that ended.

One record for each party that decides an outcome: the gateway for every command that reached one, the agent API for
what ended before, or for a gateway that was lost. Never a token, an error's sentence or an idempotency key, any of
which may carry what nobody means to keep; parameters where the settings ask for them.
"""

import datetime

import msgspec

from protocol import subjects
from protocol.access import Principal
from protocol.codec import decode, raw_bytes
from protocol.errors import InvalidRequest
from protocol.messages import CommandRequest, timestamp

SUCCESS = "success"
GATEWAY, AGENT_API = "gateway", "agent_api"
MAX_PARAMETERS_BYTES = 4096
MAX_CODE_CHARS = 128
_FIRST_SECOND, _LAST_SECOND = 86_400, 253_370_764_800  # of 1970-01-02 and 9999-01-01


class AuditRecord(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """A command's outcome: `success` or the code of an error; `code` is the application's own where it failed.

    `at` is when it was decided, RFC 3339 in UTC, `duration_ms` what the command took until then, `by` who decided.
    `user` and `app` are the client's, `agent` the `sub` of the caller's token; they are absent where they were not
    known. `via` says how the command came to the gateway; `replayed` that it was answered with the outcome of another
    request under the same idempotency key.
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
    via: str | None = None
    code: str | None = None
    replayed: bool = False
    parameters: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What a record says of a command that is under way, beside its ids. `parameters` where they are recorded.

    `request_id` is the caller's, where the command has come under another one.
    """

    role: str
    target: str
    action: str | None
    parameters: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    request_id: str | None = None


def asked_by(caller: Principal, command: CommandRequest, *, with_parameters: bool) -> Asked:
    """Return what a record will say of a command."""
    parameters = kept_parameters(command.parameters) if with_parameters else msgspec.UNSET
    return Asked(caller.role, command.target, command.action, parameters, command.caller_request_id)


def kept_parameters(parameters: msgspec.Raw) -> msgspec.Raw:
    """Return a copy of parameters for a record, for a view would hold their whole message; of large ones the size."""
    size = len(memoryview(parameters))
    if size > MAX_PARAMETERS_BYTES:
        return msgspec.Raw(b'"%d bytes"' % size)
    return msgspec.Raw(raw_bytes(parameters))


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True):
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


def instant(text: str, where: str) -> str:
    """Return an instant of RFC 3339 as `at` is written; raise `InvalidRequest` naming `where` for anything else.

    What lies beyond the times of any record is moved to their edge, a leap second to the one before.
    """
    try:
        parsed = datetime.datetime.fromisoformat(text.upper().replace(":60", ":59"))
        if parsed.tzinfo is None:
            raise ValueError
    except ValueError as exc:
        raise InvalidRequest(f"{where}: must be an instant such as 2026-01-31T12:00:00Z") from exc
    return timestamp(min(max(parsed.timestamp(), _FIRST_SECOND), _LAST_SECOND))


def read_record(data: bytes) -> AuditRecord | None:
    """Return a stored record, None for what is none of ours."""
    try:
        return decode(_decoder, data)
    except InvalidRequest:
        return None


_decoder = msgspec.json.Decoder(AuditRecord)
