"""A gateway's liveness: takes the result of each ping and returns the action. Sans-I/O.

    TRUSTED ──no answer──▶ DOUBTED ──enough──▶ SUSPECT ──no veto──▶ LOST
       ▲                      │                  │  ▲                │
       └───────answer─────────┘          veto ▼  │ enough ◀──────────┘ (and so on, until forgotten)
       └──────────answer, then sync──────── VOUCHED

"Enough" is two *no responders* at least 1.5 s apart, or three silences. For a suspect the other registries are asked.
Its clients are withdrawn only if none of them has a veto. While this registry is blind (NATS is away, or back for less
than 1.5 s), all evidence is forgotten.
"""

from enum import Enum, auto

GONE_SECONDS = 1.5
SILENCES = 3
FORGET_SECONDS = 60.0


class GatewayState(Enum):
    """A registry's opinion of a gateway."""

    TRUSTED = auto()
    DOUBTED = auto()
    SUSPECT = auto()
    VOUCHED = auto()
    LOST = auto()
    FORGOTTEN = auto()


class LivenessEvent(Enum):
    """The result of a ping or of a question to the peers."""

    PONG = auto()
    NO_RESPONDERS = auto()
    SILENCE = auto()
    BLIND = auto()
    VETO = auto()
    NO_VETO = auto()


class LivenessEffect(Enum):
    """The action for the monitor."""

    ASK_PEERS = auto()
    WITHDRAW = auto()
    SYNC = auto()
    FORGET = auto()


class IllegalEvent(Exception):
    """The event cannot happen in this state. Nothing has changed."""


_Step = tuple[GatewayState, LivenessEffect | None]
_NO_ANSWER = (LivenessEvent.NO_RESPONDERS, LivenessEvent.SILENCE)
_TABLE: dict[tuple[GatewayState, LivenessEvent], _Step] = {
    (GatewayState.TRUSTED, LivenessEvent.PONG): (GatewayState.TRUSTED, None),
    (GatewayState.TRUSTED, LivenessEvent.BLIND): (GatewayState.TRUSTED, None),
    (GatewayState.TRUSTED, LivenessEvent.NO_RESPONDERS): (GatewayState.DOUBTED, None),
    (GatewayState.TRUSTED, LivenessEvent.SILENCE): (GatewayState.DOUBTED, None),
    (GatewayState.DOUBTED, LivenessEvent.PONG): (GatewayState.TRUSTED, None),
    (GatewayState.DOUBTED, LivenessEvent.BLIND): (GatewayState.TRUSTED, None),
    (GatewayState.DOUBTED, LivenessEvent.NO_RESPONDERS): (GatewayState.DOUBTED, None),
    (GatewayState.DOUBTED, LivenessEvent.SILENCE): (GatewayState.DOUBTED, None),
    (GatewayState.SUSPECT, LivenessEvent.PONG): (GatewayState.TRUSTED, LivenessEffect.SYNC),
    (GatewayState.SUSPECT, LivenessEvent.BLIND): (GatewayState.VOUCHED, None),
    (GatewayState.SUSPECT, LivenessEvent.NO_RESPONDERS): (GatewayState.SUSPECT, None),
    (GatewayState.SUSPECT, LivenessEvent.SILENCE): (GatewayState.SUSPECT, None),
    (GatewayState.SUSPECT, LivenessEvent.VETO): (GatewayState.VOUCHED, None),
    (GatewayState.SUSPECT, LivenessEvent.NO_VETO): (GatewayState.LOST, LivenessEffect.WITHDRAW),
    (GatewayState.VOUCHED, LivenessEvent.PONG): (GatewayState.TRUSTED, LivenessEffect.SYNC),
    (GatewayState.VOUCHED, LivenessEvent.BLIND): (GatewayState.VOUCHED, None),
    (GatewayState.VOUCHED, LivenessEvent.NO_RESPONDERS): (GatewayState.VOUCHED, None),
    (GatewayState.VOUCHED, LivenessEvent.SILENCE): (GatewayState.VOUCHED, None),
    (GatewayState.LOST, LivenessEvent.PONG): (GatewayState.TRUSTED, LivenessEffect.SYNC),
    (GatewayState.LOST, LivenessEvent.BLIND): (GatewayState.LOST, None),
    (GatewayState.LOST, LivenessEvent.NO_RESPONDERS): (GatewayState.LOST, None),
    (GatewayState.LOST, LivenessEvent.SILENCE): (GatewayState.LOST, None),
}


class Liveness:
    """One gateway as one registry sees it. Times are monotonic, in seconds."""

    def __init__(self) -> None:
        self.state = GatewayState.TRUSTED
        self._gone_since: float | None = None
        self._silences = 0
        self._lost_since: float | None = None

    def handle(self, event: LivenessEvent, now: float) -> LivenessEffect | None:
        """Take an event and return the action. Raises `IllegalEvent`."""
        step = _TABLE.get((self.state, event))
        if step is None:
            raise IllegalEvent(f"{event.name} while {self.state.name}")
        if event not in _NO_ANSWER:
            self._clear_doubt(event)
        elif self._enough(event, now):
            step = (GatewayState.SUSPECT, LivenessEffect.ASK_PEERS)
        if event is LivenessEvent.NO_VETO and self._long_lost(now):
            step = (GatewayState.FORGOTTEN, LivenessEffect.FORGET)
        self.state, effect = step
        return effect

    def _enough(self, event: LivenessEvent, now: float) -> bool:
        if event is LivenessEvent.SILENCE:
            self._silences += 1
            return self._silences >= SILENCES
        if self._gone_since is None:
            self._gone_since = now
        return now - self._gone_since >= GONE_SECONDS

    def _clear_doubt(self, event: LivenessEvent) -> None:
        self._gone_since = None
        self._silences = 0
        if event in (LivenessEvent.PONG, LivenessEvent.VETO):
            self._lost_since = None

    def _long_lost(self, now: float) -> bool:
        """Tell whether a gateway has been lost for so long that pinging it can end."""
        self._lost_since = now if self._lost_since is None else self._lost_since
        return now - self._lost_since >= FORGET_SECONDS
