"""Decides from the results of probes whether a gateway is gone. Sans-I/O."""

import enum

from protocol.runtime.nats.connection import EVIDENCE_AFTER_SECONDS, Connection

SECOND_LOOK_SECONDS = 0.2
GONE_SECONDS = 0.5  # longer than a gateway takes to reconnect to a NATS that is there
SILENCES_TO_LOSE = 2


class Evidence(enum.Enum):
    """The result of a probe."""

    ANSWER = enum.auto()
    NO_RESPONDERS = enum.auto()
    SILENCE = enum.auto()


class Doubt:
    """Collects evidence against one gateway. It never reads a clock."""

    def __init__(self) -> None:
        self._silences = 0
        self._gone_since: float | None = None

    def weigh(self, evidence: Evidence, now: float) -> bool:
        """Add evidence and return whether the gateway is lost. An answer clears all evidence."""
        match evidence:
            case Evidence.ANSWER:
                self.dispel()
            case Evidence.SILENCE:
                self._silences += 1
            case Evidence.NO_RESPONDERS if self._gone_since is None:
                self._gone_since = now
            case Evidence.NO_RESPONDERS:
                return now - self._gone_since >= GONE_SECONDS
        return self._silences >= SILENCES_TO_LOSE

    def dispel(self) -> None:
        """Forget all evidence."""
        self._silences = 0
        self._gone_since = None

    @property
    def look_again_soon(self) -> bool:
        """Whether a *no responders* awaits its confirmation."""
        return self._gone_since is not None


def has_just_reconnected(connection: Connection) -> bool:
    """Tell whether NATS came back less than 1.5 s ago, so that gateways may not have subscribed again."""
    if not connection.connected or not connection.reconnects:
        return False  # while NATS is away, silence counts: waits must end even if it does not return
    return connection.unbroken_seconds() < EVIDENCE_AFTER_SECONDS
