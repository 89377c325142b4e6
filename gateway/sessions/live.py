"""The shell around one session: it performs the core's effects, on the client's WebSocket and for callers.

A frame or a message is handled without yielding to the event loop, so that effects reach the socket and NATS in the
core's order.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, assert_never

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from gateway.dialects.dialect import Dialect, Farewell, Heartbeat
from gateway.sessions.core.effects import Answer, Arm, Changed, Close, Effect, Ping, Send
from gateway.sessions.core.progress import PublishProgress, RemindProgress
from gateway.sessions.core.resume import MAX_KEPT, Loss, SessionClaim
from gateway.sessions.core.session import Session, SessionState
from gateway.sessions.core.snapshots import GrantParts, SessionSnapshot
from gateway.sessions.replies import Replies
from protocol import subjects
from protocol.errors import CloseCode, Overloaded
from protocol.frames import ConnectionLimits, ServerFrame
from protocol.messages import timestamp
from protocol.records import ClientRecord
from protocol.reports import EndReason
from protocol.runtime.alarms import Alarm, Alarms
from protocol.runtime.expiry import Expiry
from protocol.runtime.nats.library.subscriptions import Drops
from protocol.shares import Holder, Piece, Shares
from protocol.subjects import ClientAddress


class Socket(Protocol):
    """The session's view of its WebSocket; no method waits."""

    def send_text(self, data: bytes) -> None:
        """Write a text frame, or abort a connection that does not read."""

    def send_ping(self, on_pong: Callable[[], None]) -> None:
        """Write a ping. Call `on_pong` when its pong comes."""

    def close_soon(self, code: int, reason: str) -> None:
        """Start the closing handshake, and abort the connection if the peer does not answer."""

    def hold(self) -> None:
        """Hand over no more messages, and stop reading from the socket."""

    def go_on(self) -> None:
        """Hand over messages again."""

    def require_room(self, size: int) -> None:
        """Raise `Overloaded` if `size` more bytes of commands do not fit into the send buffer."""

    def count_queued(self, size: int) -> None:
        """Count `size` bytes of queued commands as unread output."""

    def check_reading(self) -> bool:
        """Abort the connection if the client reads too slowly. Return whether it has read since the last call."""


class Nowhere:
    """The socket of a session whose client is away. It discards all frames."""

    def send_text(self, data: bytes) -> None:
        """Send nothing."""

    def send_ping(self, on_pong: Callable[[], None]) -> None:
        """Ask nobody."""

    def close_soon(self, code: int, reason: str) -> None:
        """Close nothing."""

    def hold(self) -> None:
        """Hold nothing."""

    def go_on(self) -> None:
        """Read nothing."""

    def require_room(self, size: int) -> None:
        """Refuse nothing."""

    def count_queued(self, size: int) -> None:
        """Count nothing."""

    def check_reading(self) -> bool:
        """Tell that nobody reads."""
        return False


NOWHERE = Nowhere()
NEVER = (-1, -1)
MAX_TOLD = 256  # replies, which have 256 bytes at most


class HeldBack(Protocol):
    """Something for which a client's messages and frames have to wait, such as the reading of its capabilities."""

    @property
    def held_back(self) -> list[Callable[[], None]]:
        """The waiting messages and frames, as calls that handle them, in order."""


class Handlers(NamedTuple):
    """The gateway's handlers of a session's commands, changes and end."""

    on_command: Callable[["LiveSession", Msg], None]
    drops: Drops
    on_reservation_ended: Callable[[Answer], None]
    on_changed: Callable[["LiveSession"], None]
    on_ended: Callable[["LiveSession", EndReason], None]
    on_used_up: Callable[["LiveSession"], None]
    on_moved: Callable[["LiveSession"], None] = lambda session: None


class Grace:
    """The time for which a session waits for its client, and its share of memory meanwhile."""

    __slots__ = ("alarm", "place", "until")

    def __init__(self, until: float, alarm: Alarm, place: Piece) -> None:
        self.until = until
        self.alarm = alarm
        self.place = place

    def end(self) -> None:
        """Stop waiting: cancel the alarm and give the place back."""
        self.alarm.cancel()
        self.place.release()


class Part:
    """The part of one gateway in a session that several gateways could hold.

    `verified` names the connection to NATS, and the time since the last freeze, in which it was sure to be the holder.
    `claimed` is set when the claim of a new session has ended: None if it was won. `told` are the replies of commands
    whose callers have heard that they are lost: a former holder, which has them in flight, must not tell it again.
    """

    __slots__ = (
        "_places",
        "alarm",
        "claimed",
        "holding",
        "inbox",
        "kept",
        "look",
        "parts",
        "reading",
        "told",
        "verified",
    )  # fmt: skip

    def __init__(self, holding: SessionClaim, verified: tuple[int, int], inbox: str) -> None:
        self.holding = holding
        self.verified = verified
        self.inbox = inbox
        self.claimed: asyncio.Future[Loss | None] | None = None
        self.look: asyncio.Future[bool] | None = None
        self.parts = GrantParts()
        # The number of complete grants that are being read.
        self.reading = 0
        self.alarm: Alarm | None = None
        self.kept: list[Piece] = []
        self.told: tuple[str, ...] = ()
        # The places of the messages that wait. They are made with the first message.
        self._places: Shares | None = None

    def keep(self, sender: Holder, room: Shares, size: int) -> None:
        """Take room for a message that waits. Raises `Overloaded` if the sender's share of it is used up."""
        if self._places is None:
            self._places = Shares(MAX_KEPT, "too many commands wait for this session, which moves; try again")
        place = self._places.ask(sender, 1)
        try:
            self.kept.append(room.ask(sender, size))
        except Overloaded:
            place.release()
            raise
        self.kept.append(place)

    def tell(self, replies: Iterable[str]) -> None:
        """Note that the callers with these replies have heard that their commands are lost."""
        self.told = (*self.told, *replies)[-MAX_TOLD:]

    def let_go(self) -> None:
        """Release the room of waiting messages."""
        for piece in self.kept:
            piece.release()
        self.kept.clear()
        self._places = None


class LiveContext(NamedTuple):
    """The parts that all sessions of a gateway share."""

    gateway_id: str
    limits: ConnectionLimits
    replies: Replies
    handlers: Handlers
    alarms: Alarms
    clock: Callable[[], float]
    call_at: Callable[..., object]
    leave_subject: Callable[["LiveSession", float], None]


class LiveSession:
    """A session with its socket, its dialect, its timers and its subscription."""

    __slots__ = (
        "_alarms",
        "_beaten_at",
        "_context",
        "_expiry",
        "connected_at",
        "core",
        "dialect",
        "end_reason",
        "events_in_flight",
        "focused_at",
        "grace",
        "has_left_subject",
        "is_asked_for",
        "is_slowed_down",
        "on_message",
        "part",
        "refreshing",
        "registration",
        "socket",
        "subscription",
    )  # fmt: skip

    def __init__(self, core: Session, socket: Socket, dialect: Dialect, context: LiveContext) -> None:
        self.core = core
        self.socket = socket
        self.dialect = dialect
        self.connected_at = timestamp(time.time())
        self.focused_at: str | None = None
        self.subscription: Subscription | None = None
        self.end_reason: EndReason | None = None
        self.events_in_flight = 0
        self.refreshing = False
        self.is_slowed_down = False
        self.has_left_subject = False
        self.registration: HeldBack | None = None
        self.grace: Grace | None = None
        self.is_asked_for = False
        self.part: Part | None = None
        self.on_message = context.handlers.on_command
        self._context = context
        self._alarms: dict[str, Alarm] = {}
        self._expiry = Expiry()
        self._beaten_at = context.clock()

    @property
    def key(self) -> str:
        """The key of the session's record."""
        return subjects.client_key(self.core.principal.tenant, self.core.client_id)

    @property
    def address(self) -> ClientAddress:
        """The client's address for agents."""
        return ClientAddress(self.core.principal.tenant, self.core.client_id)

    def record(self) -> ClientRecord:
        """Return the client as the registry keeps it."""
        return self.core.record(self._context.gateway_id, self.connected_at, self.focused_at)

    def perform(self, effects: Iterable[Effect]) -> None:
        """Perform the core's effects, in order and without yielding."""
        for effect in effects:
            match effect:
                case Send(frame=frame):
                    self.send(frame)
                case Answer():
                    self._answer(effect)
                case Arm(wire_id=wire_id, at=at):
                    self._alarms[wire_id] = self._context.alarms.at(at, self._deadline_passed, wire_id)
                case Changed(focused=focused):
                    self._changed(focused=focused)
                case Ping():
                    self._ping()
                case Close(code=code, reason=reason, end=end):
                    self.close(code, reason, end)
                case PublishProgress():
                    self._context.replies.progress(effect)
                case RemindProgress(wire_id=wire_id, at=at):
                    self._context.call_at(at, self._progress_due, wire_id)
                case _:
                    assert_never(effect)

    @property
    def gateway_limits(self) -> ConnectionLimits:
        """The limits that are sent to the client."""
        return self._context.limits

    def snapshot(self) -> SessionSnapshot | None:
        """Return all that another gateway needs to go on with the session; None if it has ended."""
        if self.core.state is SessionState.ENDED:
            return None
        now = self._context.clock()
        grace_ms = None if self.grace is None else max(0, round((self.grace.until - now) * 1000))
        return self.core.snapshot(self.connected_at, self.focused_at, grace_ms, now)

    def take_connection(self, socket: Socket, dialect: Dialect) -> None:
        """Go on with another socket, and close the former one if it is open."""
        former, self.socket = self.socket, socket
        say_farewell(former, self.dialect, CloseCode.REPLACED, "replaced by a newer connection of this session")
        self.dialect = dialect
        self.end_reason = None
        self.is_slowed_down = False

    def lose_connection(self) -> None:
        """Go on without a socket."""
        self.socket = NOWHERE
        self._expiry.stop()

    def leave_gateway(self, *, moved: bool) -> None:
        """End here because another gateway holds the session; `moved` says that it answers the commands in flight."""
        now, told = self._context.clock(), () if self.part is None else self.part.told
        effects = self.core.leave(now) if moved else self.core.end(now, EndReason.GATEWAY_FAILED)
        self.perform(
            effect
            for effect in effects
            if not (isinstance(effect, Answer) and not effect.reservation and effect.call.reply in told)
        )
        for alarm in self._alarms.values():
            alarm.cancel()
        self._alarms.clear()
        self._expiry.stop()

    def greet(self) -> None:
        """Send the dialect's first frames."""
        for data in self.dialect.opening(self.core.client_id, self._context.limits):
            self.socket.send_text(data)

    def send(self, frame: ServerFrame) -> None:
        """Send a frame, unless the dialect has no word for it."""
        data = self.dialect.encode(frame)
        if data is not None:
            self.socket.send_text(data)
        if self.dialect.queue is not None:
            self.socket.count_queued(self.dialect.queue.waiting_bytes)

    def close(self, code: int, reason: str, end: EndReason) -> None:
        """Start to close the socket. The session ends when it is closed, with the first `end` as its reason."""
        self.end_reason = self.end_reason or end
        say_farewell(self.socket, self.dialect, code, reason)

    def switch(self, dialect: Dialect) -> None:
        """Use another dialect from now on."""
        self.dialect = dialect
        if dialect.queue is not None:
            self.core.require_room_besides(dialect.queue.require_room)

    def leave(self, farewell: Farewell) -> None:
        """Start to close the socket, because the client has said goodbye in its dialect."""
        self.end_reason = self.end_reason or EndReason.CLOSED
        _say(self.socket, farewell)

    def watch_expiry(self) -> None:
        """Close the socket exactly when its token expires."""
        self._expiry.watch(self.core.principal.expires_at, self._token_ended)

    def tick(self, now: float) -> None:
        """Check that the client is still there. Reading counts, because its pong waits behind unread output."""
        if self.socket.check_reading():
            self.core.heard(now)
        self.perform(self.core.tick(now))
        if self.part is not None:
            self.part.holding.forget(now)
        if self.dialect.queue is not None:
            self.socket.count_queued(self.dialect.queue.waiting_bytes)
        if self.dialect.heartbeat is not None:
            self._beat(self.dialect.heartbeat, now)

    def leave_subject(self, seconds: float) -> bool:
        """Unsubscribe for `seconds`; callers get `unavailable`. Return False if that is so already."""
        if self.has_left_subject or self.core.state is SessionState.ENDED:
            return False
        self.has_left_subject = True
        self._context.leave_subject(self, seconds)
        return True

    def end_grace(self) -> None:
        """Stop waiting for the client."""
        grace, self.grace = self.grace, None
        if grace is not None:
            grace.end()

    def end(self, reason: EndReason = EndReason.CLOSED) -> None:
        """End the core and stop all timers."""
        self.end_grace()
        self.perform(self.core.end(self._context.clock(), reason))
        self._expiry.stop()

    def _changed(self, *, focused: bool) -> None:
        if focused:
            self.focused_at = timestamp(time.time())
        self._context.handlers.on_changed(self)

    def _ping(self) -> None:
        """Ping with the dialect's own frame, which a frame answers, or with a WebSocket ping if it has none."""
        data = self.dialect.ping()
        if data is None:
            self.socket.send_ping(self._heard)
        else:
            self.socket.send_text(data)

    def _beat(self, heartbeat: Heartbeat, now: float) -> None:
        if now - self._beaten_at >= heartbeat.seconds:
            self._beaten_at = now
            self.socket.send_text(heartbeat.beat(time.time()))

    def _token_ended(self) -> None:
        self.close(CloseCode.REFUSED, "token expired", EndReason.TOKEN_EXPIRED)

    def _answer(self, effect: Answer) -> None:
        alarm = self._alarms.pop(effect.wire_id, None)
        if alarm is not None:
            alarm.cancel()
        if effect.reservation:
            self._context.handlers.on_reservation_ended(effect)
        else:
            self._context.replies.answer(self.core.view, effect)

    def _deadline_passed(self, wire_id: str) -> None:
        self.perform(self.core.deadline_passed(wire_id, self._context.clock()))

    def _progress_due(self, wire_id: str) -> None:
        self.perform(self.core.progress_due(wire_id, self._context.clock()))

    def _heard(self) -> None:
        self.core.heard(self._context.clock())


def say_farewell(socket: Socket, dialect: Dialect, code: int, reason: str) -> None:
    """Send the dialect's last words and start to close the socket, by a code of the protocol's table."""
    _say(socket, dialect.close(code, reason))


def _say(socket: Socket, farewell: Farewell) -> None:
    for data in farewell.frames:
        socket.send_text(data)
    socket.close_soon(farewell.code, farewell.reason)
