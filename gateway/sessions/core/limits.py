"""The settings of a session."""

from typing import NamedTuple

from protocol.frames import ConnectionLimits


class SessionLimits(NamedTuple):
    """The settings of a session; `audits_parameters` asks for the parameters of commands in their records."""

    command_timeout_ms: int
    max_command_timeout_ms: int
    max_in_flight: int
    ping_interval_seconds: float
    ping_timeout_seconds: float
    max_message_bytes: int
    audits_parameters: bool = False

    @property
    def told(self) -> ConnectionLimits:
        """The limits that are sent to the client."""
        return ConnectionLimits(self.max_message_bytes, self.ping_interval_seconds)

    def timeout_ms(self, asked_ms: int | None) -> int:
        """Return the timeout of a command: the requested one or the default, cut to the maximum."""
        return min(asked_ms or self.command_timeout_ms, self.max_command_timeout_ms)
