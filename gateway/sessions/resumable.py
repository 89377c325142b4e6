"""Sessions that outlive their sockets: opened, resumed here or from another gateway, kept for a while, handed on.

A session without a client is kept for the grace period. It takes a place that may have to be given back: the places are
shared by the tenants and the users whose clients are away.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import NamedTuple

import msgspec
import nats.errors
from nats.aio.msg import Msg

from gateway.capabilities.contracts import Contracts
from gateway.dialects.dialect import Dialect
from gateway.dialects.native import NATIVE
from gateway.sessions.claims import Arrival, ClaimHandlers, ClaimOutcomes, ClaimService, now_ms
from gateway.sessions.core.resume import ClaimKind, Loss
from gateway.sessions.core.resume_tokens import ResumeToken, ResumeTokens
from gateway.sessions.core.session import SessionState
from gateway.sessions.core.snapshots import (
    MAX_STATE_BYTES,
    SIGNATURE_HEADER,
    AdoptRequest,
    SessionSnapshot,
    read_signature,
    signature_text,
)
from gateway.sessions.live import NOWHERE, Grace, LiveSession, Socket
from gateway.sessions.moved_lists import MovedLists
from gateway.sessions.table import SessionTable
from protocol import PROTOCOL_VERSION, codec, subjects
from protocol.access import APP, Principal
from protocol.errors import BridgeError, CloseCode, Overloaded, Unavailable
from protocol.frames import ConnectionFrame
from protocol.ids import new_client_id
from protocol.reports import EndReason
from protocol.runtime.alarms import Alarms
from protocol.runtime.connections.turns import Turns
from protocol.runtime.derived_keys import DerivedKeys
from protocol.runtime.nats.connection import Connection
from protocol.runtime.websocket.handshake import TurnedAway
from protocol.shares import GiveBack, Piece, Shares
from protocol.subjects import ClientAddress

MAX_BYTES = 64 * 1024 * 1024  # of sessions whose clients are away, and of commands that may have to be sent again
SESSION_BYTES = 4096  # what one takes besides its metadata
ADOPT_QUEUE = "adopt"
ADOPT_SECONDS = 0.5  # for another gateway to say that it tries
ADOPTIONS_AT_ONCE = 128
HANDOVER_SECONDS = 3.0
HANDOVER_POLL_SECONDS = 0.02

# A client that ends so is expected back. The others have said goodbye, or may not come back as they are.
_AWAY = frozenset(
    {
        EndReason.CONNECTION_LOST,
        EndReason.NO_PONG,
        EndReason.TOO_SLOW,
        EndReason.TOKEN_EXPIRED,
        EndReason.SHUTDOWN,
    }
)

log = logging.getLogger(__name__)
_adoptions = msgspec.json.Decoder(AdoptRequest)


class ResumeSettings(NamedTuple):
    """The secrets that sign, the first of them, and for how long a session waits for its client."""

    secrets: list[str]
    grace_seconds: float


class Sessions(NamedTuple):
    """All sessions of a gateway, and the parts for resumable ones; None if none is resumable."""

    table: SessionTable
    resumable: "ResumableSessions | None"


class ResumableSessions:
    """The resumable sessions of a gateway, which are in the table like all others."""

    def __init__(
        self,
        settings: ResumeSettings,
        table: SessionTable,
        connection: Connection,
        contracts: Contracts,
        turns: Turns,
        tasks: asyncio.TaskGroup,
        handlers: ClaimHandlers,
    ) -> None:
        self._table = table
        self._connection = connection
        self._tasks = tasks
        self._grace_seconds = settings.grace_seconds
        self._tokens = ResumeTokens(DerivedKeys(settings.secrets, "resume tokens"))
        self._keys = DerivedKeys(settings.secrets, "claims")
        outcomes = ClaimOutcomes(self._held, self._lost)
        self._lists = MovedLists(contracts, turns, tasks, self._turn_away)
        self._claims = ClaimService(connection, self._keys, self._lists, tasks, handlers, outcomes)
        self._shares = Shares(MAX_BYTES, "too many sessions wait for their clients; connect again")
        self._loop = asyncio.get_running_loop()
        self._alarms = Alarms()
        self._resumed = 0

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Hear claims, and keep detached sessions of gateways that shut down."""
        await self._claims.start()
        subject = subjects.gateway(subjects.PEERS, "adopt")
        subscription = await self._connection.subscribe(subject, self._asked_to_adopt, queue=ADOPT_QUEUE)
        self._adopts = subscription
        yield

    def counters(self) -> dict[str, int]:
        """Return the number of detached sessions, and the counters since the start."""
        return {
            "sessionsDetached": len(self._detached()),
            "sessionsResumed": self._resumed,
            "listsUnread": self._lists.waiting,
            **self._claims.counters(),
        }

    # --- clients that come ---

    async def open(self, principal: Principal, socket: Socket, dialect: Dialect, token: str) -> LiveSession:
        """Return the session that a resume token names, or a new one; its client is greeted.

        Raises as `SessionTable.open()` does, and `TurnedAway` if a newer connection has got the session meanwhile.
        """
        told = self._tokens.read(token, principal) if token else None
        if told is not None:
            session = await self._resume(told, principal, socket, dialect)
            if session is not None:
                return session
        session = self._table.make(new_client_id(), principal, socket, dialect)
        self._keep_frames(session)
        self._claims.hold(session, now_ms())
        await self._table.begin(session)
        self._greet(session, resumed=False if token else None)
        return session

    async def _resume(
        self, token: ResumeToken, principal: Principal, socket: Socket, dialect: Dialect
    ) -> LiveSession | None:
        """Return the token's session, which this gateway now holds, or None if the token was used before."""
        here = self._table.find(principal.tenant, token.client_id)
        # After a freeze or a break another gateway may hold the session, although it is still in our table.
        if here is not None and self._claims.is_sure(here):
            return self._attach(here, token, principal, socket, dialect)
        session = self._table.make(token.client_id, principal, socket, dialect)
        self._keep_frames(session)
        # A later claim wins. If this clock is behind, the token's own number keeps the claim above the old holder's.
        generation = max(now_ms(), token.serial + 1)
        loss = await self._claims.claim(
            session, ClaimKind.CLIENT, token.serial, generation, partial(self._table.subscribe, session)
        )
        if loss is Loss.SPENT:
            # The token was used before: an older page, or a copy. It gets a session of its own.
            return None
        if loss is not None:
            raise TurnedAway(CloseCode.REPLACED, "replaced by a newer connection of this session")
        return session

    def _attach(
        self, session: LiveSession, token: ResumeToken, principal: Principal, socket: Socket, dialect: Dialect
    ) -> LiveSession | None:
        """Attach a client's new connection to its session at this gateway."""
        assert session.part is not None
        # A token that is older than the last one used must not take the session from its present client.
        if token.serial < session.part.holding.lowest or session.core.principal.sub != principal.sub:
            return None
        session.end_grace()
        session.take_connection(socket, dialect)
        self._claims.renew(session, token.serial)
        self._begin_connection(session, principal, resumed=True)
        return session

    def _begin_connection(self, session: LiveSession, principal: Principal, *, resumed: bool) -> None:
        effects = session.core.attach(principal, session.socket.require_room, self._loop.time())
        self._resumed += resumed
        self._greet(session, resumed=resumed)
        session.watch_expiry()
        session.perform(effects)

    def _greet(self, session: LiveSession, *, resumed: bool | None) -> None:
        """Send the first frame: the token for the next connection, and the ids that the session awaits."""
        assert session.part is not None
        core = session.core
        address = ClientAddress(core.principal.tenant, core.client_id)
        token = self._tokens.issue(address, core.principal.sub, session.part.holding.rank.generation)
        awaiting = core.awaited if resumed else None
        limits = session.gateway_limits
        session.send(ConnectionFrame(core.client_id, PROTOCOL_VERSION, limits, token, resumed, awaiting))

    # --- clients that go ---

    def left(self, session: LiveSession, socket: Socket, reason: EndReason, *, goodbye: bool) -> None:
        """Note the end of a connection. The session waits for its client, unless that has said `goodbye`."""
        if session.socket is not socket or session.core.state is SessionState.ENDED:
            # It has gone on with another connection, or to another gateway.
            return
        reason = session.end_reason or reason
        expected = reason in _AWAY or (reason is EndReason.CLOSED and not goodbye)
        if not expected or not self._detach(session, reason, self._grace_seconds):
            self._table.end(session, reason)

    def _detach(self, session: LiveSession, reason: EndReason, seconds: float) -> bool:
        """Have a session wait for its client; return whether there was room for it."""
        core = session.core
        holder = (core.principal.tenant, core.principal.sub)
        size = SESSION_BYTES + len(codec.encode(core.metadata))
        try:
            place = self._shares.ask(holder, size, lambda _: self._give_up(session))
        except Overloaded:
            # The user's share is used up by its other sessions: this one ends at once.
            return False
        until = self._loop.time() + seconds
        session.end_reason = reason
        session.grace = Grace(until, self._alarms.at(until, self._give_up, session), place)
        session.lose_connection()
        session.perform(core.detach())
        return True

    def _give_up(self, session: LiveSession) -> None:
        """End a detached session after its grace, or because its place is needed."""
        self._table.end(session, session.end_reason or EndReason.CONNECTION_LOST)

    def _turn_away(self, session: LiveSession) -> None:
        """End a session whose capability list can neither be read now nor wait."""
        if session.grace is not None:
            self._give_up(session)
        else:
            session.close(
                CloseCode.TOO_MANY, "the gateway has no room for the session; connect again", EndReason.GATEWAY_FAILED
            )

    def _detached(self) -> list[LiveSession]:
        return [session for session in self._table if session.grace is not None]

    def _keep_frames(self, session: LiveSession) -> None:
        session.core.keep_frames(partial(self._room_for_frame, session.core.principal.tenant))

    def _room_for_frame(self, tenant: str, agent: str, size: int, give_back: GiveBack) -> Piece | None:
        """Return room in the agent's share, so that one agent's commands do not push out those of others."""
        try:
            return self._shares.ask((tenant, agent), size, give_back)
        except Overloaded:
            return None

    # --- claims that end ---

    def _held(self, session: LiveSession, arrival: Arrival) -> None:
        """Hold a session that was claimed; one that was in doubt is as it was."""
        part = session.part
        assert part is not None
        if part.claimed is None or part.claimed.done():
            # The session was here and in doubt, and nobody else holds it: nothing changes.
            return
        is_for_peer = part.holding.claim.kind is ClaimKind.PEER
        effects = []
        if arrival.arrived is not None:
            snapshot, contract = arrival.arrived
            if is_for_peer:
                self._adopt_identity(session, snapshot)
            session.connected_at, session.focused_at = snapshot.connected_at, snapshot.focused_at
            effects = session.core.arrive(snapshot, contract, self._loop.time())
            if snapshot.wants_agents:
                session.core.want_agents(True, time.time() - self._loop.time())
        else:
            session.core.begin_anew(now_ms())
        session.perform(effects)
        if is_for_peer:
            self._keep_for_peer(session, arrival)
        else:
            self._begin_connection(session, session.core.principal, resumed=arrival.resumed)
            self._table.enter(session)
        self._lists.read_later(session)

    def _adopt_identity(self, session: LiveSession, snapshot: SessionSnapshot) -> None:
        expires_at = float("inf") if snapshot.expires_at is None else snapshot.expires_at
        session.core.adopt(Principal(snapshot.sub, snapshot.role, snapshot.tenant, expires_at))
        self._keep_frames(session)

    def _keep_for_peer(self, session: LiveSession, arrival: Arrival) -> None:
        assert arrival.arrived is not None
        snapshot = arrival.arrived.snapshot
        self._table.enter(session)
        seconds = self._grace_seconds if snapshot.grace_ms is None else snapshot.grace_ms / 1000
        if not self._detach(session, EndReason.SHUTDOWN, seconds):
            self._table.end(session, EndReason.SHUTDOWN)

    def _lost(self, session: LiveSession, why: Loss) -> None:
        """Let a session go that another gateway, or another connection, holds."""
        session.end_grace()
        if session.part is not None and session.part.claimed is not None and not session.part.claimed.done():
            session.core.leave(self._loop.time())
            self._table.linger(session)
            return
        if session.core.state is SessionState.ENDED:
            return
        session.leave_gateway(moved=why is Loss.YIELDED)
        session.close(CloseCode.REPLACED, "replaced by a newer connection of this session", EndReason.CLOSED)
        self._table.depart(session)

    # --- the end of this gateway, and of others ---

    async def drain(self) -> None:
        """Keep no more sessions for others, and send away the clients that may come back at once elsewhere."""
        with contextlib.suppress(nats.errors.Error):
            # The subscription has gone with the connection.
            await self._adopts.unsubscribe()
        if not await self._others_are_there():
            # Clients have nowhere to go: their commands may end first.
            return
        for session in self._table:
            if session.part is not None and not session.core.holds_keys:
                session.close(CloseCode.RESTARTING, "the gateway is shutting down", EndReason.SHUTDOWN)

    async def _others_are_there(self) -> bool:
        """Tell whether another gateway would keep sessions."""
        try:
            await self._connection.request(subjects.gateway(subjects.PEERS, "adopt"), b"", ADOPT_SECONDS)
        except (TimeoutError, nats.errors.Error, BridgeError):
            return False
        return True

    async def hand_over(self) -> None:
        """Hand detached sessions to other gateways, for three seconds at most, and end those that none has taken."""
        detached = self._detached()
        if detached:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HANDOVER_SECONDS):
                    await self._ask_peers(detached)
                    while any(session.is_asked_for for session in self._detached()):
                        await asyncio.sleep(HANDOVER_POLL_SECONDS)
        # No other gateway has taken these in time. Their clients begin anew.
        for session in self._detached():
            session.end_reason = EndReason.SHUTDOWN
            self._give_up(session)

    async def _ask_peers(self, detached: list[LiveSession]) -> None:
        """Ask other gateways to claim these sessions, so many at a time."""
        left = iter(detached)

        async def ask_for_some() -> None:
            for session in left:
                await self._ask_peer(session)

        async with asyncio.TaskGroup() as asking:
            for _ in range(min(ADOPTIONS_AT_ONCE, len(detached))):
                asking.create_task(ask_for_some(), name="hand sessions over")

    async def _ask_peer(self, session: LiveSession) -> None:
        """Ask another gateway to claim a session, unless its client has come to one meanwhile."""
        part, core = session.part, session.core
        if part is None or session.grace is None or len(memoryview(core.contract.capabilities.raw)) > MAX_STATE_BYTES:
            return
        request = AdoptRequest(core.principal.tenant, core.client_id, part.holding.rank.generation)
        body, subject = codec.encode(request), subjects.gateway(subjects.PEERS, "adopt")
        headers = {SIGNATURE_HEADER: signature_text(self._keys.sign(subject.encode() + b"\n" + body))}
        with contextlib.suppress(TimeoutError, nats.errors.Error, BridgeError):
            # If no peer answers, the session ends here.
            await self._connection.request(subject, body, ADOPT_SECONDS, headers)
            session.is_asked_for = True

    async def _asked_to_adopt(self, msg: Msg) -> None:
        """Claim a session for a gateway that shuts down; an empty question is whether anybody would."""
        if not msg.data:
            with contextlib.suppress(BridgeError):
                # NATS has just gone: nobody hears the answer.
                self._connection.publish_now(msg.reply, b"{}")
            return
        signature = read_signature((msg.headers or {}).get(SIGNATURE_HEADER, ""))
        if not self._keys.verify(msg.subject.encode() + b"\n" + msg.data, signature):
            # No gateway of ours has sent it. An answer would only help a forger.
            return
        try:
            request = codec.decode(_adoptions, msg.data)
            self._connection.publish_now(msg.reply, b"{}")
        except BridgeError as exc:
            log.warning("a session of another gateway cannot be kept: %s", exc.message)
            return
        self._tasks.create_task(self._adopt(request), name="keep a session of another gateway")

    async def _adopt(self, request: AdoptRequest) -> None:
        nobody = Principal("", APP, request.tenant, 0)
        session = self._table.make(request.client_id, nobody, NOWHERE, NATIVE.make())
        subscribe = partial(self._table.subscribe, session)
        try:
            await self._claims.claim(session, ClaimKind.PEER, 0, request.generation + 1, subscribe)
        except (Unavailable, Overloaded) as exc:
            log.info("a session of another gateway is not kept: %s", exc.message)
        except Exception:
            log.exception("a session of another gateway could not be kept")
