"""The sessions of a gateway by client id: opened, found, looked after and ended."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from functools import partial

from gateway.dialects.dialect import Dialect
from gateway.limits.rate_limits import RateLimits
from gateway.sessions.core.limits import SessionLimits
from gateway.sessions.core.resume import HolderState
from gateway.sessions.core.session import Session, SessionState
from gateway.sessions.live import NEVER, NOWHERE, Handlers, LiveContext, LiveSession, Socket
from gateway.sessions.replies import Replies
from protocol import subjects
from protocol.access import Principal
from protocol.errors import BridgeError, Unavailable
from protocol.frames import ConnectionLimits
from protocol.ids import new_client_id
from protocol.reports import EndReason
from protocol.runtime.alarms import Alarms
from protocol.runtime.nats.connection import Connection

LINGER_SECONDS = 1.0
LAST_LINGER_SECONDS = 0.1  # of a process that ends: nothing new is sent to it, and what is queued is answered
TICK_SECONDS = 1.0
CREDIT = 2_000  # messages to a client that NATS may send before they are handled: some 10 ms of a flood
DRAIN_POLL_SECONDS = 0.05

log = logging.getLogger(__name__)


class SessionTable:
    """All sessions of this gateway."""

    def __init__(
        self,
        gateway_id: str,
        connection: Connection,
        tasks: asyncio.TaskGroup,
        limits: SessionLimits,
        replies: Replies,
        handlers: Handlers,
        rate_limits: RateLimits | None = None,
    ) -> None:
        self.draining = False
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._tasks = tasks
        self._limits = limits
        self._replies = replies
        self._handlers = handlers
        self._rate_limits = rate_limits or RateLimits()
        self._context = LiveContext(
            gateway_id,
            limits.told,
            replies,
            handlers,
            Alarms(),
            self._loop.time,
            self._loop.call_at,
            self._leave_subject,
        )
        self._live: dict[str, LiveSession] = {}
        self._opened = 0
        self._late_responses = 0
        self._late_progress = 0
        self._lingering = 0
        self._gone = asyncio.Event()
        self._gone.set()

    def __iter__(self) -> Iterator[LiveSession]:
        return iter(list(self._live.values()))

    def __len__(self) -> int:
        return len(self._live)

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Look after the sessions; at the orderly end wait until none is left, those included that linger."""
        self._tasks.create_task(self._run_clock(), name="clock")
        yield
        await self._gone.wait()

    def find(self, tenant: str, client_id: str) -> LiveSession | None:
        """Return the live session of a client of this tenant, or None."""
        session = self._live.get(client_id)
        return session if session is not None and session.core.principal.tenant == tenant else None

    async def open(self, principal: Principal, socket: Socket, dialect: Dialect) -> LiveSession:
        """Begin a session, reachable for agents when this returns.

        Raises `Unavailable` while NATS is away, `Overloaded` if it takes no more subscriptions of this gateway.
        """
        session = self.make(new_client_id(), principal, socket, dialect)
        await self.begin(session)
        return session

    def make(self, client_id: str, principal: Principal, socket: Socket, dialect: Dialect) -> LiveSession:
        """Return a session that is not in the table yet."""
        core = Session(client_id, principal, self._limits, self._loop.time(), self._rate_limits, socket.require_room)
        return LiveSession(core, socket, dialect, self._context)

    async def begin(self, session: LiveSession) -> None:
        """Take in a session, and return when agents can reach it. Raises what `open()` raises."""
        if not self._connection.connected:
            raise Unavailable("NATS is away; try again in a moment")
        self._live[session.core.client_id] = session
        self._gone.clear()
        try:
            await self.subscribe(session)
        except BaseException:
            self.end(session, EndReason.CONNECTION_LOST)
            raise
        self.enter(session)

    def enter(self, session: LiveSession) -> None:
        """Count a session, which agents can reach, among those of this gateway, and report it."""
        self._live[session.core.client_id] = session
        self._gone.clear()
        self._opened += 1
        if session.socket is not NOWHERE:
            session.watch_expiry()
        self._handlers.on_changed(session)

    def depart(self, session: LiveSession) -> None:
        """Let a session go that another gateway holds; its subject is heard for a second more, and not answered."""
        if self._live.get(session.core.client_id) is session:
            del self._live[session.core.client_id]
            self._keep_counts(session)
            self._handlers.on_moved(session)
        self.linger(session)

    def linger(self, session: LiveSession) -> None:
        """Hear a session's subject for a second more."""
        self._lingering += 1
        self._gone.clear()
        self._tasks.create_task(self._linger(session), name=f"end {session.core.client_id}")

    def end(self, session: LiveSession, reason: EndReason) -> None:
        """End a session: answer what waits, tell the registry, and answer latecomers for a second more."""
        if session.core.state is SessionState.ENDED:
            return
        if self._live.get(session.core.client_id) is session:
            del self._live[session.core.client_id]
        reason = session.end_reason or reason
        session.end(reason)
        self._keep_counts(session)
        self._handlers.on_ended(session, reason)
        self.linger(session)

    def _keep_counts(self, session: LiveSession) -> None:
        """Go on counting what came late to a session that is not in the table any more."""
        self._late_responses += session.core.late_responses
        self._late_progress += session.core.late_progress

    def drain(self) -> None:
        """Take no more commands on any session."""
        self.draining = True
        for session in self:
            session.core.drain()

    @property
    def told_limits(self) -> ConnectionLimits:
        """The limits that clients are told."""
        return self._context.limits

    @property
    def commands_in_flight(self) -> int:
        """How many commands wait for an application."""
        return sum(session.core.commands_in_flight for session in self)

    def counters(self) -> dict[str, int]:
        """Return what is counted since the start; what is late came after its command was answered."""
        return {
            "sessions": len(self._live),
            "connectionsOpened": self._opened,
            "commandsInFlight": self.commands_in_flight,
            "lateResponses": self._late_responses + sum(session.core.late_responses for session in self),
            "lateProgress": self._late_progress + sum(session.core.late_progress for session in self),
        }

    async def wait_commands(self, timeout_seconds: float) -> None:
        """Wait until no command is in flight, for `timeout_seconds` at most."""
        give_up = self._loop.time() + timeout_seconds
        while self._commands_of_connected() and self._loop.time() < give_up:
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    def _commands_of_connected(self) -> int:
        connected = (session.core for session in self if session.socket is not NOWHERE)
        return sum(core.commands_in_flight for core in connected)

    async def _run_clock(self) -> None:
        """Look after silent clients, callers who have died and old outcomes, for ever."""
        ticked, running_since = self._loop.time(), 0.0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self._loop.time()
            if now - ticked > 2 * TICK_SECONDS:  # this process was held up: what was said meanwhile comes now
                running_since = now
            ticked, reachable_since = now, max(running_since, now - self._connection.unbroken_seconds())
            for session in self:
                session.tick(now)
                session.perform(session.core.abandon(now, reachable_since))
            self._replies.outcomes.expire(now)

    async def subscribe(self, session: LiveSession) -> None:
        """Have a session's messages come from now on. Raises what `open()` raises."""
        subject = subjects.command(session.core.principal.tenant, session.core.client_id)
        # Claims bring no token, so a flood's filter would take them for a part of it.
        drops = self._handlers.drops if session.part is None else None
        handler = partial(session.on_message, session)
        used_up = partial(self._handlers.on_used_up, session)
        session.subscription = await self._connection.subscribe_confirmed(subject, handler, drops, CREDIT, used_up)

    def _leave_subject(self, session: LiveSession, seconds: float) -> None:
        """Unsubscribe a session for a while. What NATS has sent before is handled: commands may be among it."""
        self._tasks.create_task(self._stay_away(session, seconds), name=f"leave {session.core.client_id}")

    async def _stay_away(self, session: LiveSession, seconds: float) -> None:
        await self._unsubscribe(session)
        await asyncio.sleep(seconds)
        while session.subscription is None and session.core.state is not SessionState.ENDED:
            try:
                await self.subscribe(session)
            except BridgeError as exc:
                log.info("client %s is not reachable yet: %s", session.core.client_id, exc.message)
                await asyncio.sleep(TICK_SECONDS)
        session.has_left_subject = False
        if session.part is not None:
            session.part.verified = NEVER  # it may have missed a claim
        if session.core.client_id not in self._live:
            await self._unsubscribe(session)  # it may have ended, and its lingering too, while it subscribed

    async def _unsubscribe(self, session: LiveSession) -> None:
        former, session.subscription = session.subscription, None
        if former is not None:
            await self._connection.leave_subscriptions([former])

    async def _linger(self, session: LiveSession) -> None:
        """Keep the subject answered for a second, then drain it: unsubscribing loses what is queued without a word.

        While NATS is away nothing is queued, and a subscription that is not taken back now is made again when NATS
        returns.
        """
        try:
            # The one to whom it has moved may have to be told again.
            has_moved = session.part is not None and session.part.holding.standing is HolderState.PASSIVE
            await asyncio.sleep(LAST_LINGER_SECONDS if self.draining and not has_moved else LINGER_SECONDS)
            if session.subscription is not None:
                await self._connection.end_subscriptions([session.subscription])
        except Exception:
            log.warning("could not drain the subscription of an ended session", exc_info=True)
        finally:
            if session.part is not None:
                session.part.let_go()
            # It holds the session by its handler: a circle that only a collection would free.
            session.subscription = session.part = None
            self._lingering -= 1
            if not self._live and not self._lingering:
                self._gone.set()
