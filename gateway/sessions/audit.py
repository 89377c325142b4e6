"""The gateway's audit records: one for every command that reached it, executed or refused."""

import time

import msgspec

from gateway.sessions.core.effects import Answer
from protocol.access import ClientView, Principal
from protocol.audit import GATEWAY, MAX_CODE_CHARS, USER, AuditRecord, kept_parameters
from protocol.errors import BridgeError, Code
from protocol.messages import CommandRequest, timestamp
from protocol.runtime.commands.audit_log import AuditLog


class GatewayAudit:
    """Records outcomes, if there is an audit log."""

    def __init__(self, trail: AuditLog | None = None, *, with_parameters: bool = False) -> None:
        self._trail = trail
        self._with_parameters = with_parameters

    @property
    def is_behind(self) -> bool:
        """Whether records wait to be sent. Until they are, their answers must not be sent again for a probe."""
        return self._trail is not None and self._trail.is_behind

    def publish(self, client: ClientView, effect: Answer, answer: bytes) -> bool:
        """Record a command that was the client's to execute, and publish the framed answer behind the record.

        Return False if nothing is recorded, nor published. Raises `Unavailable` if the answer could not be published.
        """
        if self._trail is None:
            return False
        call, response = effect.call, effect.response
        error, asked = response.error, call.asked
        record = AuditRecord(  # by position: by name takes ten times as long, which every command would feel
            timestamp(time.time()),
            client.tenant,
            response.status if error is None else error.code,
            response.duration_ms,
            GATEWAY,
            client.client_id,
            client.user,
            client.app or None,
            call.sub,
            asked.role,
            asked.target,
            asked.action,
            call.own_id,
            None if error is None or error.code != Code.COMMAND_FAILED else _own_code(error.details),
            response.replayed,
            asked.parameters,
            USER if effect.confirmed else None,
        )
        self._trail.publish(record, answer)
        return True

    def refused(
        self,
        client: ClientView,
        error: BridgeError,
        caller: Principal | None = None,
        command: CommandRequest | None = None,
        request_id: str | None = None,
    ) -> None:
        """Record a command that was refused before it reached the client.

        The tenant is the caller's, so that its own administrators see the attempt. If the token is bad, it is that of
        the client.
        """
        if self._trail is None:
            return
        known = caller is None or caller.tenant == client.tenant
        kept = command is not None and self._with_parameters
        own_id = None if command is None else command.caller_request_id
        self._trail.refused(
            AuditRecord(
                at=timestamp(time.time()),
                tenant=client.tenant if caller is None else caller.tenant,
                client_id=client.client_id,
                user=client.user if known else None,
                app=(client.app or None) if known else None,
                agent=None if caller is None else caller.sub,
                role=None if caller is None else caller.role,
                target=None if command is None else command.target,
                action=None if command is None else command.action,
                request_id=own_id or request_id or None,
                outcome=error.code.value,
                duration_ms=0,
                by=GATEWAY,
                parameters=kept_parameters(command.parameters) if kept and command is not None else msgspec.UNSET,
            )
        )

    def counters(self) -> dict[str, int]:
        """Return the counters of the audit log."""
        return {} if self._trail is None else self._trail.counters()


def _own_code(details: object) -> str | None:
    code = details.get("code") if isinstance(details, dict) else None
    return None if code is None else str(code)[:MAX_CODE_CHARS]
