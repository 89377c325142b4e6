"""One caller's request for a command, from its arrival at the gateway to its answer."""

import msgspec

from gateway.sessions.core.limits import SessionLimits
from protocol.access import Principal
from protocol.audit import Asked, asked_by
from protocol.messages import CommandRequest


class Call(msgspec.Struct, frozen=True, gc=False):
    """A request without its parameters, which are dropped when the command has been sent.

    `request_id` is the id on NATS. `started` and `deadline` are monotonic times in seconds. `name` is the agent's.
    """

    sub: str
    request_id: str
    reply: str
    started: float
    deadline: float
    asked: Asked
    name: str | None = None
    progress_to: str | None = None

    @property
    def own_id(self) -> str:
        """The id that the caller knows. The agent API sends commands under ids of its own."""
        return self.asked.request_id or self.request_id

    def duration_ms(self, now: float) -> int:
        """Return the milliseconds since the request came."""
        return max(0, round((now - self.started) * 1000))

    def left_ms(self, now: float) -> int:
        """Return the milliseconds until the deadline; negative after it."""
        return round((self.deadline - now) * 1000)


def call_of(
    caller: Principal,
    command: CommandRequest,
    request_id: str,
    reply: str,
    limits: SessionLimits,
    now: float,
    progress_to: str | None = None,
) -> Call:
    """Begin a call at its arrival. Progress goes to `progress_to`, if anywhere."""
    return Call(
        caller.sub,
        request_id,
        reply,
        now,
        now + limits.timeout_ms(command.timeout_ms) / 1000,
        asked_by(caller, command, with_parameters=limits.audits_parameters),
        caller.name,
        progress_to,
    )
