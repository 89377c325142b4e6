"""The state of components: the event `state_changed` sets properties of a component in the client's record.

The event itself is always published. Each change writes the record again, so the rates of registrations apply to
changes, too. Changes above the rate are merged, and written when there is room again.
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
    """Changes that are not in the client's record yet: properties by component, and their bytes."""

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
        """The number of clients with unwritten changes."""
        return len(self._waiting)

    def take(self, session: LiveSession, frame: EventFrame) -> None:
        """Set the properties in an event, if its source is a component of the client.

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
        """Write the changes, or try again when there is room. A refusal is a separate `error`, after the event."""
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
    """Return the properties in an event, or none if it has another form. Raises `InvalidFrame` for deep nesting."""
    if not isinstance(frame.data, msgspec.Raw):
        return {}
    try:
        properties = codec.decode(_state_decoder, codec.raw_bytes(frame.data), InvalidFrame).properties
    except InvalidFrame:
        return {}
    for value in properties.values():
        require_shallow(codec.decode_value(value, InvalidFrame), "`data.properties`", InvalidFrame)
    return properties
