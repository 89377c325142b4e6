"""The sessions of a gateway by client id: it opens, finds, checks and ends them."""

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
LAST_LINGER_SECONDS = 0.1  # when the process ends, because then only queued commands can still arrive
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
        """Check the sessions once a second. On a regular exit wait until all have ended and none lingers."""
        self._tasks.create_task(self._run_clock(), name="clock")
        yield
        await self._gone.wait()

    def find(self, tenant: str, client_id: str) -> LiveSession | None:
        """Return the live session of a client of this tenant, or None."""
        session = self._live.get(client_id)
        return session if session is not None and session.core.principal.tenant == tenant else None

    async def open(self, principal: Principal, socket: Socket, dialect: Dialect) -> LiveSession:
        """Begin a session. Agents can reach it when this returns.

        Raises `Unavailable` while NATS is away, and `Overloaded` if NATS takes no more subscriptions of this gateway.
        """
        session = self.make(new_client_id(), principal, socket, dialect)
        await self.begin(session)
        return session

    def make(self, client_id: str, principal: Principal, socket: Socket, dialect: Dialect) -> LiveSession:
        """Make a session, without adding it to the table."""
        core = Session(client_id, principal, self._limits, self._loop.time(), self._rate_limits, socket.require_room)
        return LiveSession(core, socket, dialect, self._context)

    async def begin(self, session: LiveSession) -> None:
        """Add a session, and return when agents can reach it. Raises as `open()` does."""
        if not self._connection.connected:
            raise Unavailable("NATS is away; try again in a moment")
        # Add it before the wait, so that a drain that begins meanwhile finds it.
        self._live[session.core.client_id] = session
        self._gone.clear()
        try:
            await self.subscribe(session)
        except BaseException:
            # A cancellation, too: the socket may have gone while NATS confirmed the subscription.
            self.end(session, EndReason.CONNECTION_LOST)
            raise
        self.enter(session)

    def enter(self, session: LiveSession) -> None:
        """Add a session that agents can reach already, and report it to the registry."""
        self._live[session.core.client_id] = session
        self._gone.clear()
        self._opened += 1
        if session.socket is not NOWHERE:
            session.watch_expiry()
        self._handlers.on_changed(session)

    def depart(self, session: LiveSession) -> None:
        """Remove a session that another gateway has taken over. Its subject lingers for a second, without answers."""
        # A newer session of the same client may be in the table already.
        if self._live.get(session.core.client_id) is session:
            del self._live[session.core.client_id]
            self._keep_counts(session)
            self._handlers.on_moved(session)
        self.linger(session)

    def linger(self, session: LiveSession) -> None:
        """Keep a session's subscription for one more second."""
        self._lingering += 1
        self._gone.clear()
        self._tasks.create_task(self._linger(session), name=f"end {session.core.client_id}")

    def end(self, session: LiveSession, reason: EndReason) -> None:
        """End a session: fail its commands, tell the registry, and answer late commands for one more second."""
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
        """The limits that are sent to clients."""
        return self._context.limits

    @property
    def commands_in_flight(self) -> int:
        """The number of commands that wait for an application."""
        return sum(session.core.commands_in_flight for session in self)

    def counters(self) -> dict[str, int]:
        """Return the counters of `/metrics`. A late response or progress came after its command was answered."""
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
        """Once a second, for ever: check silent clients, cancel commands of dead callers, drop old outcomes."""
        ticked, running_since = self._loop.time(), 0.0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self._loop.time()
            if now - ticked > 2 * TICK_SECONDS:
                # This process was frozen, and probes sent meanwhile arrive only now.
                running_since = now
            ticked = now
            self._tick(now, max(running_since, now - self._connection.unbroken_seconds()))
            self._replies.outcomes.expire(now)

    def _tick(self, now: float, reachable_since: float) -> None:
        # Not in the loop that sleeps: its variable would hold the last session after its end.
        for session in self:
            session.tick(now)
            session.perform(session.core.abandon(now, reachable_since))

    async def subscribe(self, session: LiveSession) -> None:
        """Subscribe to a session's subject. Raises as `open()` does."""
        subject = subjects.command(session.core.principal.tenant, session.core.client_id)
        # A resumable session gets claims, which carry no token. The filter against floods would drop them.
        drops = self._handlers.drops if session.part is None else None
        handler = partial(session.on_message, session)
        used_up = partial(self._handlers.on_used_up, session)
        session.subscription = await self._connection.subscribe_confirmed(subject, handler, drops, CREDIT, used_up)

    def _leave_subject(self, session: LiveSession, seconds: float) -> None:
        """Unsubscribe a session for `seconds`. Commands that NATS has already sent are still handled."""
        self._tasks.create_task(self._stay_away(session, seconds), name=f"leave {session.core.client_id}")

    async def _stay_away(self, session: LiveSession, seconds: float) -> None:
        await self._unsubscribe(session)
        await asyncio.sleep(seconds)
        while session.subscription is None and session.core.state is not SessionState.ENDED:
            # Doubt before the first message comes: a claim may have been missed meanwhile.
            _doubt(session)
            try:
                await self.subscribe(session)
            except BridgeError as exc:
                log.info("client %s is not reachable yet: %s", session.core.client_id, exc.message)
                await asyncio.sleep(TICK_SECONDS)
        session.has_left_subject = False
        _doubt(session)
        if self._live.get(session.core.client_id) is not session:
            # The session ended, and stopped lingering, while this subscribed.
            await self._unsubscribe(session)

    async def _unsubscribe(self, session: LiveSession) -> None:
        former, session.subscription = session.subscription, None
        if former is not None:
            await self._connection.leave_subscriptions([former])

    async def _linger(self, session: LiveSession) -> None:
        """Answer the subject for one more second, then drain it, because unsubscribing would lose queued commands.

        Do it even while NATS is away, because the library repeats all subscriptions after a reconnect.
        """
        try:
            # The gateway that took it over may have missed the grant, and asks again within the full second.
            has_moved = session.part is not None and session.part.holding.standing is HolderState.PASSIVE
            await asyncio.sleep(LAST_LINGER_SECONDS if self.draining and not has_moved else LINGER_SECONDS)
            if session.subscription is not None:
                await self._connection.end_subscriptions([session.subscription])
        except Exception:
            log.warning("could not drain the subscription of an ended session", exc_info=True)
        finally:
            if session.part is not None:
                session.part.let_go()
            # Break the reference cycle: the subscription's handler refers to the session.
            session.subscription = session.part = None
            self._lingering -= 1
            if not self._live and not self._lingering:
                self._gone.set()


def _doubt(session: LiveSession) -> None:
    """Have a session that did not hear its subject prove that it still holds its client: it may have missed a claim."""
    if session.part is not None:
        session.part.verified = NEVER
