"""The agent API's audit records: one for each command whose outcome is decided here because no gateway answered it."""

import time
from typing import NamedTuple

import msgspec

from protocol.access import Principal
from protocol.audit import AGENT_API, SUCCESS, AuditRecord, kept_parameters
from protocol.errors import BridgeError, Code
from protocol.messages import CommandRequest, CommandResponse, timestamp
from protocol.runtime.commands.audit_log import AuditLog


class CommandTarget(NamedTuple):
    """A function, or a component and its action."""

    target: str
    action: str | None = None


class CommandAudit:
    """Records outcomes, if there is an audit log. Callers without a good token have no tenant and are only counted."""

    def __init__(self, trail: AuditLog | None = None, *, with_parameters: bool = False) -> None:
        self._trail = trail
        self._with_parameters = with_parameters
        self._unauthenticated = 0

    def unauthenticated(self) -> None:
        """Count a request without a good token."""
        self._unauthenticated += 1

    def refused(
        self,
        error: Exception,
        caller: Principal,
        command: CommandRequest | None = None,
        client_id: str | None = None,
        duration_seconds: float = 0.0,
        named: CommandTarget | None = None,
    ) -> None:
        """Record that a command ended with an error; an unexpected exception counts as `internal`.

        `named` is the target of a request that was refused before it was a command.
        """
        code = error.code if isinstance(error, BridgeError) else Code.INTERNAL
        if self._trail is not None:
            duration_ms = round(duration_seconds * 1000)
            record = self._record(code.value, caller, command, client_id, duration_ms)
            if command is None and named is not None:
                record = msgspec.structs.replace(record, target=named.target, action=named.action)
            self._trail.refused(record)

    def answered(
        self, response: CommandResponse, caller: Principal, command: CommandRequest, duration_seconds: float = 0.0
    ) -> None:
        """Record an answer that came from no gateway, such as the stored outcome of a key.

        The record is written to NATS when this returns, so that no answer over HTTP overtakes it.
        """
        if self._trail is None:
            return
        outcome = SUCCESS if response.error is None else response.error.code
        duration_ms = round(duration_seconds * 1000)
        record = self._record(outcome, caller, command, response.client_id, duration_ms, replayed=response.replayed)
        self._trail.publish(record, at_once=True)

    def counters(self) -> dict[str, int]:
        """Return the counters since the start."""
        counted = {} if self._trail is None else self._trail.counters()
        return {"unauthenticated": self._unauthenticated, **counted}

    def _record(
        self,
        outcome: str,
        caller: Principal,
        command: CommandRequest | None,
        client_id: str | None,
        duration_ms: int,
        *,
        replayed: bool = False,
    ) -> AuditRecord:
        kept = command is not None and self._with_parameters
        return AuditRecord(
            at=timestamp(time.time()),
            tenant=caller.tenant,
            client_id=client_id,
            agent=caller.sub,
            role=caller.role,
            target=None if command is None else command.target,
            action=None if command is None else command.action,
            request_id=None if command is None else command.request_id,
            outcome=outcome,
            replayed=replayed,
            duration_ms=duration_ms,
            by=AGENT_API,
            parameters=kept_parameters(command.parameters) if kept and command is not None else msgspec.UNSET,
        )
