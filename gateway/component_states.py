"""The state of components in records: the event `state_changed` of an application sets properties of its source.

The event itself is published in any case. A record is written anew for each change, so changes are held to
the rates of registrations: those that come too fast are put together and written when there is room again.
"""

import asyncio
from collections.abc import Callable

import msgspec

from gateway.capabilities.changes import Properties, with_properties
from gateway.limits.client_rates import ClientRates
from gateway.sessions.core.session import SessionState
from gateway.sessions.live import LiveSession
from protocol import codec
from protocol.codec import require_shallow
from protocol.errors import BridgeError, InvalidFrame, Overloaded, RateLimited
from protocol.frames import EventFrame

STATE_CHANGED = "state_changed"
MAX_WAITING_BYTES = 64 * 1024  # of one client
RETRY_SECONDS = 0.1


class _State(msgspec.Struct):
    properties: dict[str, msgspec.Raw] = {}


class _WaitingStates(msgspec.Struct):
    """Changes that are not in a client's record yet: properties by component, and their bytes."""

    components: dict[str, Properties] = {}
    size: int = 0
    timer: asyncio.TimerHandle | None = None


_state_decoder = msgspec.json.Decoder(_State)


class ComponentStates:
    """Writes the states of all clients. `register` replaces a client's capability list."""

    def __init__(self, rates: ClientRates, register: Callable[[LiveSession, list[msgspec.Raw]], None]) -> None:
        self._rates = rates
        self._register = register
        self._waiting: dict[str, _WaitingStates] = {}
        self._loop = asyncio.get_running_loop()

    @property
    def waiting(self) -> int:
        """How many clients have changes that are not written yet."""
        return len(self._waiting)

    def take(self, session: LiveSession, frame: EventFrame) -> None:
        """Set the properties that an event tells of, if its source is a component of the client's.

        Raises `InvalidFrame` for values that are nested too deeply, `Overloaded` if too many changes wait.
        """
        offer = None if frame.source is None else session.core.contract.capabilities.find(frame.source)
        properties = _properties_of(frame) if offer is not None and offer.kind == "component" else None
        if offer is None or not properties:
            return
        size = sum(len(name) + len(memoryview(value)) for name, value in properties.items())
        waiting = self._waiting.setdefault(session.core.client_id, _WaitingStates())
        if waiting.timer is not None and waiting.size + size > MAX_WAITING_BYTES:
            raise Overloaded("too many changes of components wait to be written; try again in a moment")
        waiting.components.setdefault(offer.target, {}).update(properties)
        waiting.size += size
        if waiting.timer is None:
            self._write(session, waiting)

    def _write(self, session: LiveSession, waiting: _WaitingStates) -> None:
        """Write the changes, or try again when there is room. A refusal is told by itself: its event is published."""
        core = session.core
        waiting.timer = None
        try:
            if core.state is not SessionState.ENDED:
                self._change(session, waiting)
        except RateLimited as exc:
            wait_seconds = max(RETRY_SECONDS, exc.retry_after_ms / 1000)
            waiting.timer = self._loop.call_later(wait_seconds, self._write, session, waiting)
            return
        except BridgeError as exc:
            session.perform(core.refuse_frame(exc, self._loop.time()))
        del self._waiting[core.client_id]

    def _change(self, session: LiveSession, waiting: _WaitingStates) -> None:
        """Replace the client's list. Raises `RateLimited` above its rates, and while another list is being read."""
        if session.registration is not None:
            raise RateLimited.for_seconds(RETRY_SECONDS, "another list of this client is being read")
        registered = session.core.contract.capabilities.raw
        size = len(memoryview(registered)) + waiting.size
        self._rates.registrations.keep(session.core.view, size, self._loop.time())
        self._register(session, with_properties(registered, waiting.components))


def _properties_of(frame: EventFrame) -> Properties:
    """Return the properties that an event sets; none if it has another form. Raises `InvalidFrame` for deep values."""
    if not isinstance(frame.data, msgspec.Raw):
        return {}
    try:
        properties = codec.decode(_state_decoder, codec.raw_bytes(frame.data), InvalidFrame).properties
    except InvalidFrame:
        return {}
    for value in properties.values():
        require_shallow(codec.decode_value(value, InvalidFrame), "`data.properties`", InvalidFrame)
    return properties
