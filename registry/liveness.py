"""Whether a gateway lives: what each ping brought to light goes in, what to do about it comes out. Sans-I/O.

    TRUSTED ──no answer──▶ DOUBTED ──enough──▶ SUSPECT ──no veto──▶ LOST
       ▲                      │                  │  ▲                │
       └───────answer─────────┘          veto ▼  │ enough ◀──────────┘ (and so on, until forgotten)
       └──────────answer, then sync──────── VOUCHED

Enough are two *no responders* at least 1.5 s apart, or three silences. A suspect's peers are asked; only without their
veto are its clients withdrawn. A time without sight (NATS away, or back for less than 1.5 s) takes all doubt away.
"""

from enum import Enum, auto

GONE_SECONDS = 1.5
SILENCES = 3
FORGET_SECONDS = 60.0


class State(Enum):
    """How a gateway is seen."""

    TRUSTED = auto()
    DOUBTED = auto()
    SUSPECT = auto()
    VOUCHED = auto()
    LOST = auto()
    FORGOTTEN = auto()


class Event(Enum):
    """What was learned."""

    PONG = auto()
    NO_RESPONDERS = auto()
    SILENCE = auto()
    BLIND = auto()
    VETO = auto()
    NO_VETO = auto()


class Effect(Enum):
    """What to do."""

    ASK_PEERS = auto()
    WITHDRAW = auto()
    SYNC = auto()
    FORGET = auto()


class IllegalEvent(Exception):
    """An event that cannot happen in this state; nothing has changed."""


_Step = tuple[State, Effect | None]
_NO_ANSWER = (Event.NO_RESPONDERS, Event.SILENCE)
_TABLE: dict[tuple[State, Event], _Step] = {
    (State.TRUSTED, Event.PONG): (State.TRUSTED, None),
    (State.TRUSTED, Event.BLIND): (State.TRUSTED, None),
    (State.TRUSTED, Event.NO_RESPONDERS): (State.DOUBTED, None),
    (State.TRUSTED, Event.SILENCE): (State.DOUBTED, None),
    (State.DOUBTED, Event.PONG): (State.TRUSTED, None),
    (State.DOUBTED, Event.BLIND): (State.TRUSTED, None),
    (State.DOUBTED, Event.NO_RESPONDERS): (State.DOUBTED, None),
    (State.DOUBTED, Event.SILENCE): (State.DOUBTED, None),
    (State.SUSPECT, Event.PONG): (State.TRUSTED, Effect.SYNC),
    (State.SUSPECT, Event.BLIND): (State.VOUCHED, None),
    (State.SUSPECT, Event.NO_RESPONDERS): (State.SUSPECT, None),
    (State.SUSPECT, Event.SILENCE): (State.SUSPECT, None),
    (State.SUSPECT, Event.VETO): (State.VOUCHED, None),
    (State.SUSPECT, Event.NO_VETO): (State.LOST, Effect.WITHDRAW),
    (State.VOUCHED, Event.PONG): (State.TRUSTED, Effect.SYNC),
    (State.VOUCHED, Event.BLIND): (State.VOUCHED, None),
    (State.VOUCHED, Event.NO_RESPONDERS): (State.VOUCHED, None),
    (State.VOUCHED, Event.SILENCE): (State.VOUCHED, None),
    (State.LOST, Event.PONG): (State.TRUSTED, Effect.SYNC),
    (State.LOST, Event.BLIND): (State.LOST, None),
    (State.LOST, Event.NO_RESPONDERS): (State.LOST, None),
    (State.LOST, Event.SILENCE): (State.LOST, None),
}


class Liveness:
    """One gateway as one registry sees it. Times are monotonic, in seconds."""

    def __init__(self) -> None:
        self.state = State.TRUSTED
        self._gone_since: float | None = None
        self._silences = 0
        self._lost_since: float | None = None

    def handle(self, event: Event, now: float) -> Effect | None:
        """Take an event and return what to do. Raises `IllegalEvent`."""
        step = _TABLE.get((self.state, event))
        if step is None:
            raise IllegalEvent(f"{event.name} while {self.state.name}")
        if event not in _NO_ANSWER:
            self._clear_doubt(event)
        elif self._enough(event, now):
            step = (State.SUSPECT, Effect.ASK_PEERS)
        if event is Event.NO_VETO and self._long_lost(now):
            step = (State.FORGOTTEN, Effect.FORGET)
        self.state, effect = step
        return effect

    def _enough(self, event: Event, now: float) -> bool:
        if event is Event.SILENCE:
            self._silences += 1
            return self._silences >= SILENCES
        if self._gone_since is None:
            self._gone_since = now
        return now - self._gone_since >= GONE_SECONDS

    def _clear_doubt(self, event: Event) -> None:
        self._gone_since = None
        self._silences = 0
        if event in (Event.PONG, Event.VETO):
            self._lost_since = None

    def _long_lost(self, now: float) -> bool:
        """Tell whether a gateway has been lost for so long that it need not be asked for any more."""
        self._lost_since = now if self._lost_since is None else self._lost_since
        return now - self._lost_since >= FORGET_SECONDS
