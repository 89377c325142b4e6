"""The shell around sessions: performs what the core decides, on a WebSocket and on NATS, and keeps the table of them.

Everything here that reacts to a frame or a message runs without yielding, so that effects reach the socket and NATS in
the order in which the core decided them.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol, assert_never

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from gateway.audit import Audit
from gateway.dialects import native
from gateway.outcomes import Outcomes
from gateway.pace import Pace
from gateway.progress import Remind, Tell
from gateway.session import Answer, Arm, Changed, Close, Effect, InFlight, Limits, Ping, Send, Session, State
from protocol import codec, subjects
from protocol.access import ClientView, Principal
from protocol.errors import CloseCode, PayloadTooLarge, Unavailable
from protocol.frames import ServerFrame
from protocol.ids import new_client_id
from protocol.messages import CommandResponse, error_headers, failure, timestamp
from protocol.records import ClientRecord
from protocol.reports import EndReason
from protocol.runtime.alarms import Alarm, Alarms
from protocol.runtime.expiry import Expiry
from protocol.runtime.nats import Connection

LINGER_SECONDS = 1.0
TICK_SECONDS = 1.0
DRAIN_POLL_SECONDS = 0.05

log = logging.getLogger(__name__)


class Socket(Protocol):
    """What a session needs of its WebSocket; nothing here waits."""

    def send_text(self, data: bytes) -> None:
        """Write a text frame, or abort a connection that does not read."""

    def send_ping(self, on_pong: Callable[[], None]) -> None:
        """Write a ping; call `on_pong` when its answer comes."""

    def close_soon(self, code: int, reason: str) -> None:
        """Start to close the connection; give up on a peer that does not answer."""


class LiveSession:
    """A session with its socket, its timers and its subscription."""

    __slots__ = ("_alarms", "_expiry", "_gateway", "connected_at", "core", "end_reason", "events_in_flight",
                 "refreshing", "socket", "subscription")  # fmt: skip

    def __init__(self, core: Session, socket: Socket, gateway: "Sessions") -> None:
        self.core = core
        self.socket = socket
        self.connected_at = timestamp(time.time())
        self.subscription: Subscription | None = None
        self.end_reason: EndReason | None = None
        self.events_in_flight = 0
        self.refreshing = False
        self._gateway = gateway
        self._alarms: dict[str, Alarm] = {}
        self._expiry = Expiry()

    @property
    def key(self) -> str:
        """The key of the session's record."""
        return subjects.client_key(self.core.principal.tenant, self.core.client_id)

    def record(self) -> ClientRecord:
        """Return the client as the registry keeps it."""
        return self.core.record(self._gateway.gateway_id, self.connected_at)

    def perform(self, effects: Iterable[Effect]) -> None:
        """Do what the core has decided, in order and without yielding."""
        for effect in effects:
            match effect:
                case Send(frame=frame):
                    self.send(frame)
                case Answer():
                    self._answer(effect)
                case Arm(wire_id=wire_id, at=at):
                    self._alarms[wire_id] = self._gateway.alarms.at(at, self._deadline_passed, wire_id)
                case Changed():
                    self._gateway.on_changed(self)
                case Ping():
                    self.socket.send_ping(self._heard)
                case Close(code=code, reason=reason, end=end):
                    self.close(code, reason, end)
                case Tell():
                    self._gateway.tell(effect)
                case Remind(wire_id=wire_id, at=at):
                    self._gateway.loop.call_at(at, self._progress_due, wire_id)
                case _:
                    assert_never(effect)

    def send(self, frame: ServerFrame) -> None:
        """Send a frame that is no business of the core's."""
        self.socket.send_text(native.encode(frame))

    def close(self, code: int, reason: str, end: EndReason) -> None:
        """Start to close the socket; the session ends when it is closed, for the first `end` that was given."""
        self.end_reason = self.end_reason or end
        self.socket.close_soon(code, reason)

    def watch_expiry(self) -> None:
        """Close the socket when its token ends, without leeway."""
        self._expiry.watch(self.core.principal.expires_at, self._token_ended)

    def end(self) -> None:
        """End the core and stop all timers."""
        self.perform(self.core.end(self._gateway.loop.time()))
        self._expiry.stop()

    def _token_ended(self) -> None:
        self.close(CloseCode.REFUSED, "token expired", EndReason.TOKEN_EXPIRED)

    def _answer(self, effect: Answer) -> None:
        alarm = self._alarms.pop(effect.command.wire_id, None)
        if alarm is not None:
            alarm.cancel()
        self._gateway.answer(self.core.view, effect)

    def _deadline_passed(self, wire_id: str) -> None:
        self.perform(self.core.deadline_passed(wire_id, self._gateway.loop.time()))

    def _progress_due(self, wire_id: str) -> None:
        self.perform(self.core.progress_due(wire_id, self._gateway.loop.time()))

    def _heard(self) -> None:
        self.core.heard(self._gateway.loop.time())


class Sessions:
    """All sessions of this gateway, by client id."""

    def __init__(
        self,
        gateway_id: str,
        connection: Connection,
        tasks: asyncio.TaskGroup,
        limits: Limits,
        on_changed: Callable[[LiveSession], None],
        on_ended: Callable[[LiveSession, EndReason], None],
        pace: Pace | None = None,
        audit: Audit | None = None,
    ) -> None:
        self.gateway_id = gateway_id
        self.loop = asyncio.get_running_loop()
        self.alarms = Alarms()
        self.on_changed = on_changed
        self.on_command: Callable[[LiveSession, Msg], None] | None = None
        self.on_claim_ended: Callable[[Answer], None] | None = None
        self.outcomes = Outcomes()
        self.draining = False
        self._on_ended = on_ended
        self._connection = connection
        self._tasks = tasks
        self._limits = limits
        self._pace = pace or Pace()
        self.audit = audit or Audit()
        self._live: dict[str, LiveSession] = {}
        self._answered = 0
        self._late_responses = 0
        self._late_progress = 0
        self._lingering = 0
        self._gone = asyncio.Event()
        self._gone.set()

    def __iter__(self) -> Iterator[LiveSession]:
        return iter(list(self._live.values()))

    def __len__(self) -> int:
        return len(self._live)

    def find(self, tenant: str, client_id: str) -> LiveSession | None:
        """Return the live session of a client of this tenant, or None."""
        session = self._live.get(client_id)
        return session if session is not None and session.core.principal.tenant == tenant else None

    async def open(self, principal: Principal, socket: Socket) -> LiveSession:
        """Begin a session, reachable for agents when this returns. Raises `Unavailable` while NATS is away."""
        core = Session(new_client_id(), principal, self._limits, self.loop.time(), self._pace)
        session = LiveSession(core, socket, self)
        if not self._connection.connected:
            raise Unavailable("NATS is away; try again in a moment")
        assert self.on_command is not None
        session.subscription = await self._connection.subscribe_directly(
            subjects.command(principal.tenant, core.client_id), partial(self.on_command, session)
        )
        self._live[core.client_id] = session
        self._gone.clear()
        try:
            await self._connection.flush()
        except BaseException:
            self.end(session, EndReason.CONNECTION_LOST)
            raise
        session.watch_expiry()
        self.on_changed(session)
        return session

    def end(self, session: LiveSession, reason: EndReason) -> None:
        """End a session: answer what waits, tell the registry, and answer latecomers for a second more."""
        if session.core.state is State.ENDED:
            return
        del self._live[session.core.client_id]
        session.end()
        self._late_responses += session.core.late_responses
        self._late_progress += session.core.late_progress
        self._on_ended(session, session.end_reason or reason)
        self._lingering += 1
        self._tasks.create_task(self._linger(session), name=f"end {session.core.client_id}")

    def answer(self, client: ClientView, effect: Answer) -> None:
        """Send the one answer to a command, keep it for a caller whose reply is lost, and record it."""
        command, response = effect
        if command.claim:
            assert self.on_claim_ended is not None
            self.on_claim_ended(effect)
            return
        self._answered += 1
        client_id = client.client_id
        try:
            self._send_answer(client_id, command, response)
        except PayloadTooLarge:
            error = PayloadTooLarge("the application's answer is larger than NATS takes")
            response = failure(command.request_id, error, client_id, response.duration_ms)
            self._send_answer(client_id, command, response)
        self.audit.answered(client, command, response)

    def _send_answer(self, client_id: str, command: InFlight, response: CommandResponse) -> None:
        body = codec.encode(response)
        self.outcomes.put((client_id, command.sub, command.request_id), body, self.loop.time())
        headers = None if response.error is None else error_headers(response.error)
        try:
            self._connection.publish_now(command.reply, body, headers=headers)
        except Unavailable:
            log.info("kept the answer to request %s for the caller's probe: NATS is away", command.request_id)

    def tell(self, progress: Tell) -> None:
        """Publish how far a command has come; what cannot be is missing from the caller's count."""
        try:
            self._connection.publish_now(progress.subject, codec.encode(progress.message))
        except (Unavailable, PayloadTooLarge) as exc:
            log.debug("progress of request %s is lost: %s", progress.message.request_id, exc.message)

    def drain(self) -> None:
        """Take no more commands on any session."""
        self.draining = True
        for session in self:
            session.core.drain()

    @property
    def commands_in_flight(self) -> int:
        """How many commands wait for an application."""
        return sum(session.core.commands_in_flight for session in self)

    def counters(self) -> dict[str, int]:
        """Return what is counted since the start; what is late came after its command was answered."""
        return {
            "sessions": len(self._live),
            "commandsInFlight": self.commands_in_flight,
            "commandsAnswered": self._answered,
            "lateResponses": self._late_responses + sum(session.core.late_responses for session in self),
            "lateProgress": self._late_progress + sum(session.core.late_progress for session in self),
            **self.audit.counters(),
        }

    async def run_clock(self) -> None:
        """Look after silent clients, callers who have died and old outcomes, for ever."""
        ticked, running_since = self.loop.time(), 0.0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self.loop.time()
            if now - ticked > 2 * TICK_SECONDS:  # this process was held up: what was said meanwhile comes now
                running_since = now
            ticked, reachable_since = now, max(running_since, now - self._connection.unbroken_seconds())
            for session in self:
                session.perform(session.core.tick(now))
                session.perform(session.core.abandon(now, reachable_since))
            self.outcomes.expire(now)

    async def wait_commands(self, timeout_seconds: float) -> None:
        """Wait until no command is in flight, for `timeout_seconds` at most."""
        give_up = self.loop.time() + timeout_seconds
        while self.commands_in_flight and self.loop.time() < give_up:
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    async def wait_gone(self) -> None:
        """Wait until no session is left, lingering ones included."""
        await self._gone.wait()

    async def _linger(self, session: LiveSession) -> None:
        """Keep the subject answered for a second, then drain it: unsubscribing loses what is queued without a word.

        While NATS is away nothing is queued, and what is not taken back now is subscribed again when it returns.
        """
        try:
            await asyncio.sleep(LINGER_SECONDS)
            if session.subscription is not None:
                await (
                    session.subscription.drain() if self._connection.connected else session.subscription.unsubscribe()
                )
        except Exception:
            log.warning("could not drain the subscription of an ended session", exc_info=True)
        finally:
            session.subscription = (
                None  # it holds the session by its handler: a circle that only a collection would free
            )
            self._lingering -= 1
            if not self._live and not self._lingering:
                self._gone.set()
