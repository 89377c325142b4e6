"""The protocol state of one agent's WebSocket: sans-I/O, so that "exactly one response" can be proven without a socket.

Methods take an event and the time, change the state, and return effects, which the shell performs in order. Nothing
here awaits, logs or reads a clock; `now` is a monotonic time in seconds. An illegal frame raises a `BridgeError` and
changes nothing.

    OPEN ──drain──▶ DRAINING ──(nothing in flight)──▶ CLOSED
       └──────────────────close──────────────────────▲
"""

import enum
from typing import NamedTuple, assert_never

from agent_api.commands.gather import SUCCESS, Gathered
from agent_api.commands.orders import Order, order_of
from agent_api.commands.progress_buffer import ProgressBuffer, size_of
from agent_api.events.filters import WILDCARD, Filters
from agent_api.socket.effects import (
    AgentEffect,
    CloseAgent,
    LeaveStream,
    OfferToAgent,
    OpenStream,
    OrderInFlight,
    PingAgent,
    SendToAgent,
    StartOrder,
    StopOrder,
    Stream,
    VerifyToken,
)
from agent_api.socket.frames import (
    AgentCancelFrame,
    AgentCommandFrame,
    AgentProgressFrame,
    AgentResponseFrame,
    AgentSaid,
    AskCapabilitiesFrame,
    AskOverviewFrame,
    LeaveFrame,
    SignOfLifeFrame,
    SubscribeFrame,
    UnsubscribeFrame,
    refusal,
)
from protocol.access import Principal
from protocol.errors import (
    BridgeError,
    Cancelled,
    ClientNotFound,
    CloseCode,
    Conflict,
    InvalidFrame,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from protocol.frames import AckFrame, AuthFrame, PingFrame, PongFrame
from protocol.ids import is_token
from protocol.messages import CommandResponse, ProgressMessage, failure
from protocol.runtime.websocket.bad_frames import BadFrames
from protocol.runtime.websocket.keepalive import Keepalive, KeepaliveStep
from protocol.subjects import MAX_EVENT_NAME_BYTES

MAX_IN_FLIGHT = 256
MAX_IN_FLIGHT_BYTES = 32 * 1024 * 1024
MAX_STREAMS = 32
MAX_HELD = 1000
MAX_HELD_BYTES = 256 * 1024


class AgentState(enum.Enum):
    """The state of a socket."""

    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


class AgentLimits(NamedTuple):
    """The settings of a socket."""

    command_timeout_ms: int
    max_command_timeout_ms: int
    ping_interval_seconds: float
    ping_timeout_seconds: float


class AgentSession:
    """One agent's socket. Make it when the agent is authenticated, and pass it every event."""

    def __init__(self, principal: Principal, limits: AgentLimits, now: float) -> None:
        self.principal = principal
        self.state = AgentState.OPEN
        self._limits = limits
        self._in_flight: dict[str, OrderInFlight] = {}
        self._in_flight_bytes = 0
        self._buffered: ProgressBuffer[tuple[OrderInFlight, str], AgentProgressFrame] = ProgressBuffer(
            MAX_HELD, MAX_HELD_BYTES
        )
        self._streams: dict[str, Stream] = {}
        self._refreshing = False
        self._bad_frames = BadFrames()
        self._keepalive = Keepalive(now)

    @property
    def commands_in_flight(self) -> int:
        """The number of commands without a response."""
        return len(self._in_flight)

    # --- from the agent ---

    def take(self, frame: AgentSaid, size: int, now: float) -> list[AgentEffect]:
        """Take a frame of `size` bytes.

        Raises `Conflict` if its id is in use, `Overloaded` above 256 commands, 32 MiB of commands or 32 subscriptions,
        `Unavailable` while draining, and `InvalidFrame` or another `BridgeError` if its fields are wrong.
        """
        self.heard(now)
        match frame:
            case AgentCommandFrame():
                return self._command(frame, size, now)
            case AgentCancelFrame(id=ident):
                return self._cancel(ident, now)
            case SubscribeFrame() | AskCapabilitiesFrame() | AskOverviewFrame():
                return self._open(_stream(frame))
            case UnsubscribeFrame(id=ident):
                return self._unsubscribe(ident)
            case AuthFrame():
                return self._auth(frame)
            case PingFrame():
                return [SendToAgent(PongFrame())]
            case SignOfLifeFrame():
                return []
            case LeaveFrame():
                return self.close(CloseCode.NORMAL, "")
            case _:
                assert_never(frame)

    def refuse(self, error: BridgeError, ident: str | None, now: float) -> list[AgentEffect]:
        """Answer a frame with an error. Close the socket after more than 200 bad frames within 10 s.

        Retryable errors do not count as bad frames, because the agent may send those frames again.
        """
        if not error.meaning.retryable and self._bad_frames.one_more(now):
            return self.close(CloseCode.POLICY, "too many bad frames")
        return [SendToAgent(refusal(error, ident))]

    def heard(self, now: float) -> None:
        """Note a sign of life: a frame or a pong."""
        self._keepalive.heard(now)

    # --- from the shell: progress, answers and ends ---

    def progressed(
        self, command: OrderInFlight, client_id: str, message: ProgressMessage, *, congested: bool
    ) -> list[AgentEffect]:
        """Pass on a command's progress. If the agent is `congested`, keep the newest for delivery before the response.

        At most 1,000 messages or 256 KiB are kept for all commands; above that the oldest are dropped.
        """
        if not self._waits(command):
            return []
        frame = _progress(command.ident, client_id, message)
        if congested:
            self._buffered.put((command, client_id), frame, size_of(message))
            return []
        self._buffered.drop((command, client_id))
        return [SendToAgent(frame)]

    def answered(self, command: OrderInFlight, outcome: CommandResponse | Gathered, now: float) -> list[AgentEffect]:
        """Pass on the answer to a command, unless it already has a response."""
        if not self._waits(command):
            return []
        match outcome:
            case CommandResponse():
                return self._settle(command, _response(command, outcome))
            case Gathered():
                return self._settle(command, _gathered(command, outcome, now))
            case _:
                assert_never(outcome)

    def failed(self, command: OrderInFlight, error: BridgeError, now: float) -> list[AgentEffect]:
        """Answer a command with an error, unless it already has a response."""
        return self._settle(command, _refused(command, error, now)) if self._waits(command) else []

    def tells(self, stream: Stream) -> bool:
        """Return whether the agent is still subscribed to this stream."""
        return self._streams.get(stream.ident) is stream

    def told(self, stream: Stream) -> None:
        """Forget a stream that has delivered everything."""
        if self.tells(stream):
            del self._streams[stream.ident]

    def ended(self, stream: Stream, error: BridgeError) -> list[AgentEffect]:
        """End a stream with an error to the agent, unless the agent has ended it already."""
        if not self.tells(stream):
            return []
        del self._streams[stream.ident]
        return [SendToAgent(refusal(error, stream.ident))]

    def refreshed(self, principal: Principal, ident: str | None) -> list[AgentEffect]:
        """Go on with a fresh token. The shell has verified it and found that it has the same identity."""
        self._refreshing = False
        if self.state is AgentState.CLOSED:
            return []
        self.principal = principal
        return [] if ident is None else [SendToAgent(AckFrame(ident))]

    def refused(self, error: BridgeError, ident: str | None, now: float) -> list[AgentEffect]:
        """Refuse a fresh token. The old one stays in force until it expires."""
        self._refreshing = False
        return [] if self.state is AgentState.CLOSED else self.refuse(error, ident, now)

    # --- from the clock and the process ---

    def tick(self, now: float) -> list[AgentEffect]:
        """Ping a silent agent, and close the socket if no pong comes in time."""
        if self.state is AgentState.CLOSED:
            return []
        match self._keepalive.check(now, self._limits.ping_interval_seconds, self._limits.ping_timeout_seconds):
            case KeepaliveStep.WAIT:
                return []
            case KeepaliveStep.PING:
                return [PingAgent()]
            case KeepaliveStep.LOST:
                return self.close(CloseCode.INTERNAL, "no pong")

    def drain(self) -> list[AgentEffect]:
        """Take no more commands, and close once those in flight have their responses."""
        if self.state is AgentState.OPEN:
            self.state = AgentState.DRAINING
        return self._close_where_drained()

    def give_up(self, now: float) -> list[AgentEffect]:
        """Answer every command in flight `cancelled`, and close."""
        error = Cancelled("the agent API shut down before the command had its answer; the command was cancelled")
        effects = self.drain()
        for command in list(self._in_flight.values()):
            effects += self._withdraw(command, error, now)
        return effects

    def close(self, code: int, reason: str) -> list[AgentEffect]:
        """Close the socket, and cancel commands in flight without a response."""
        if self.state is AgentState.CLOSED:
            return []
        return [*self.end(), CloseAgent(code, reason)]

    def end(self) -> list[AgentEffect]:
        """Note that the socket is closed or closing. Cancel commands in flight, and stop all streams."""
        self.state = AgentState.CLOSED
        stops: list[AgentEffect] = [StopOrder(command) for command in self._in_flight.values()]
        stops += [LeaveStream(stream) for stream in self._streams.values()]
        self._in_flight.clear()
        self._streams.clear()
        self._buffered.clear()
        return stops

    # --- inside ---

    def _command(self, frame: AgentCommandFrame, size: int, now: float) -> list[AgentEffect]:
        self._require_free(frame.id)
        order = _order(frame, self._limits)
        if self.state is AgentState.DRAINING:
            raise Unavailable("this process is shutting down; connect again in a moment")
        if len(self._in_flight) >= MAX_IN_FLIGHT or self._in_flight_bytes + size > MAX_IN_FLIGHT_BYTES:
            raise Overloaded(f"this socket has {len(self._in_flight)} commands in flight; wait for their responses")
        command = OrderInFlight(frame.id, order, size, now, frame.progress)
        self._in_flight[frame.id] = command
        self._in_flight_bytes += size
        return [StartOrder(command)]

    def _cancel(self, ident: str, now: float) -> list[AgentEffect]:
        """Cancel a command. Do nothing if it has its response, because that may have crossed the cancel."""
        command = self._in_flight.get(ident)
        return [] if command is None else self._withdraw(command, Cancelled("the agent cancelled the command"), now)

    def _open(self, stream: Stream) -> list[AgentEffect]:
        self._require_free(stream.ident)
        if self.state is AgentState.DRAINING:
            raise Unavailable("this process is shutting down; connect again in a moment")
        if len(self._streams) >= MAX_STREAMS:
            raise Overloaded(f"this socket has {len(self._streams)} subscriptions; end one of them")
        if stream.tells_clients and any(other.tells_clients for other in self._streams.values()):
            raise Overloaded("this socket has a subscription to capabilities already; end that first")
        self._streams[stream.ident] = stream
        return [OpenStream(stream)]

    def _unsubscribe(self, ident: str) -> list[AgentEffect]:
        """End a subscription, and acknowledge. It may have ended already, because its end may cross this frame."""
        stream = self._streams.pop(ident, None)
        return [*([] if stream is None else [LeaveStream(stream)]), SendToAgent(AckFrame(ident))]

    def _require_free(self, ident: str) -> None:
        if ident in self._in_flight or ident in self._streams:
            raise Conflict("this id is in use; use another one")

    def _auth(self, frame: AuthFrame) -> list[AgentEffect]:
        """Start the verification of a fresh token. Raises `Overloaded` while another one is verified."""
        # One at a time, because a verification may have to fetch the key set, and they would pile up.
        if self._refreshing:
            raise Overloaded("the former token is still being verified; send this one after its ack")
        self._refreshing = True
        return [VerifyToken(frame)]

    def _waits(self, command: OrderInFlight) -> bool:
        return self._in_flight.get(command.ident) is command

    def _withdraw(self, command: OrderInFlight, error: BridgeError, now: float) -> list[AgentEffect]:
        return [StopOrder(command), *self._settle(command, _refused(command, error, now))]

    def _settle(self, command: OrderInFlight, response: AgentResponseFrame) -> list[AgentEffect]:
        del self._in_flight[command.ident]
        self._in_flight_bytes -= command.size
        held = self._buffered.take(lambda key: key[0] is command) if self._buffered else []
        return [*map(OfferToAgent, held), SendToAgent(response), *self._close_where_drained()]

    def _close_where_drained(self) -> list[AgentEffect]:
        if self.state is not AgentState.DRAINING or self._in_flight:
            return []
        return self.close(CloseCode.RESTARTING, "the agent API is shutting down")


def _order(frame: AgentCommandFrame, limits: AgentLimits) -> Order:
    try:
        return order_of(frame, limits.command_timeout_ms, limits.max_command_timeout_ms)
    except InvalidRequest as exc:
        raise InvalidFrame(exc.message) from exc


def _stream(frame: SubscribeFrame | AskCapabilitiesFrame | AskOverviewFrame) -> Stream:
    match frame:
        case SubscribeFrame():
            return _subscription(frame)
        case AskCapabilitiesFrame(id=ident):
            return Stream(ident)
        case AskOverviewFrame(id=ident):
            return Stream(ident, overview=frame)
        case _:
            assert_never(frame)


def _subscription(frame: SubscribeFrame) -> Stream:
    if not frame.events and not frame.clients:
        raise InvalidFrame("`events`: name at least one, `*` for all, or set `clients`")
    if any(len(name.encode()) > MAX_EVENT_NAME_BYTES for name in frame.events):
        raise InvalidFrame(f"`events`: a name has at most {MAX_EVENT_NAME_BYTES} bytes")
    if frame.client_id is not None and not is_token(frame.client_id):
        raise InvalidFrame("`clientId`: no client can have this id")
    names = None if WILDCARD in frame.events else tuple(frame.events)
    filters = Filters(frame.client_id, frame.user, frame.app, names, frame.clients)
    return Stream(frame.id, filters, frame.since)


def _progress(ident: str, client_id: str, message: ProgressMessage) -> AgentProgressFrame:
    return AgentProgressFrame(
        id=ident,
        client_id=client_id,
        seq=message.seq,
        progress=message.progress,
        total=message.total,
        message=message.message,
        data=message.data,
    )


def _response(command: OrderInFlight, response: CommandResponse) -> AgentResponseFrame:
    return AgentResponseFrame(
        id=command.ident,
        request_id=command.order.request_id,
        status=response.status,
        result=response.result,
        error=response.error,
        client_id=response.client_id or command.order.client_id,
        duration_ms=response.duration_ms,
        replayed=response.replayed,
    )


def _gathered(command: OrderInFlight, gathered: Gathered, now: float) -> AgentResponseFrame:
    return AgentResponseFrame(
        id=command.ident,
        request_id=command.order.request_id,
        status=SUCCESS,
        results=gathered.results,
        complete=gathered.complete,
        duration_ms=_milliseconds(command, now),
    )


def _refused(command: OrderInFlight, error: BridgeError, now: float) -> AgentResponseFrame:
    order = command.order
    unseen = isinstance(error, ClientNotFound)  # 0 ms, as in a gateway's answer about a hidden client
    duration_ms = 0 if unseen else _milliseconds(command, now)
    return _response(command, failure(order.request_id, error, order.client_id, duration_ms))


def _milliseconds(command: OrderInFlight, now: float) -> int:
    return max(0, round((now - command.started) * 1000))
