"""How a caller comes to believe that a gateway is gone: by the evidence of its probes, weighed over time. Sans-I/O."""

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
    """How sure a caller is that a gateway is gone. Takes evidence and the time, never reads a clock."""

    def __init__(self) -> None:
        self._silences = 0
        self._gone_since: float | None = None

    def weigh(self, evidence: Evidence, now: float) -> bool:
        """Return whether the gateway is to be taken for lost; an answer takes all doubt away."""
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
    """Tell whether NATS was away a moment ago, so that others may not have subscribed again; if it still is, no."""
    if not connection.connected or not connection.reconnects:
        return False  # a NATS that stays away ends the waits, too
    return connection.unbroken_seconds() < EVIDENCE_AFTER_SECONDS
