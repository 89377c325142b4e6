"""Handles agents' messages to a session's subject: `call`, `cancel` and `probe`, each decided at once.

A subscription's messages are handled one after the other without yielding, so a probe never overtakes the command that
it asks about. Only a token that needs the key set of a remote issuer is verified in a task of its own. Until then its
command is pending, so that a probe or a cancel finds it.
"""

import asyncio
import logging

import msgspec
from nats.aio.msg import Msg

from gateway.freeze_detector import FreezeDetector
from gateway.idempotency.commands import Idempotency, KeyedRequest
from gateway.limits.flood_guard import FloodGuard
from gateway.pending_operations import Pending, PendingOperations
from gateway.sessions.core.calls import Call, call_of
from gateway.sessions.core.effects import Answer
from gateway.sessions.core.limits import SessionLimits
from gateway.sessions.core.progress import wanted_subject
from gateway.sessions.core.snapshots import MovingCommand
from gateway.sessions.live import LiveSession
from gateway.sessions.replies import Replies
from protocol import codec
from protocol.access import Principal, require, require_agent
from protocol.errors import (
    BridgeError,
    ClientLost,
    ClientNotFound,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    Unauthenticated,
    Unavailable,
)
from protocol.ids import new_request_id
from protocol.messages import (
    CancelRequest,
    CancelResponse,
    CommandRequest,
    Operation,
    ProbeRequest,
    ProbeResponse,
    decode_operation,
    error_headers,
    failure,
    is_past_deadline,
)
from protocol.runtime import logs
from protocol.runtime.connections.agent_turns import AgentTurns
from protocol.runtime.connections.turns import STRANGERS, Share, Turns, Work
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.connection import Connection
from protocol.runtime.nats.lag import QueueLag
from protocol.runtime.nats.library.subscriptions import Drops
from protocol.runtime.tokens import Standing, Verifier, token_of
from protocol.shares import Shares
from protocol.subjects import is_safe_reply

MAX_VERIFYING = 256
MAX_WAITING_BYTES = 32 * 1024 * 1024  # of messages whose parameters are to be checked
WAITING_BYTES = 1024  # what one takes beside its bytes
MAX_OUTCOMES_BYTES = 512 * 1024
TICK_SECONDS = 0.25
LOG_SECONDS = 1.0
GATEWAY_DIED = "the client's gateway died while the command was sent; it may have run"
FROZEN = "the gateway was frozen while this was sent; it was not executed, try again"
BACKLOG_SETTLE_SECONDS = 0.05

log = logging.getLogger(__name__)


class CommandSubjects:
    """Serves the command subjects of all sessions."""

    def __init__(
        self,
        connection: Connection,
        replies: Replies,
        verifier: Verifier,
        idempotency: Idempotency,
        tasks: asyncio.TaskGroup,
        limits: SessionLimits,
        turns: Turns,
    ) -> None:
        self._connection = connection
        self._replies = replies
        self._verifier = verifier
        self._tasks = tasks
        self._idempotency = idempotency
        self._limits = limits
        self._pending: PendingOperations = {}
        self._verifying = 0
        self._turns = turns
        self._places = Shares(MAX_WAITING_BYTES, "too many commands wait to be checked; try again in a moment")
        self._loop = asyncio.get_running_loop()
        self._freeze_detector = FreezeDetector(self._loop.time())
        self._guard = FloodGuard(verifier, self._loop.time, QueueLag(connection.flush).seconds)
        self._agents = AgentTurns(turns, self._loop.call_soon)
        self._freezes = 0
        self._ignored_lines = LogThrottle(LOG_SECONDS, self._loop.time)
        self._unanswered_lines = LogThrottle(LOG_SECONDS, self._loop.time)

    @property
    def drops(self) -> Drops:
        """The filter that drops messages of a flood before they come to `handle()`."""
        return self._guard.drops

    def handle(self, session: LiveSession, msg: Msg) -> None:
        """Handle one message. If it fails, its sender gets a code and the subscription goes on.

        Above a rate, messages without a good token get no answer, because an answer costs as much as all the other
        work. Above 16 in a turn of the loop, messages of a known agent wait for the agent's turn.
        """
        self._observe()
        try:
            token = token_of(msg)
        except Unauthenticated:
            # The message has two tokens.
            token = None
        known = self._verifier.known(token)
        if known is not None and not self._agents.at_once((known.tenant, known.sub)):
            self._look_later(session, msg, known, token)
        else:
            self._look_at(session, msg, token)

    def _look_later(self, session: LiveSession, msg: Msg, agent: Principal, token: str | None) -> None:
        """Handle a message in its agent's turn, or refuse it if the agent's share is used up."""
        share, held_up = (agent.tenant, agent.sub), self._freeze_detector.backlog
        try:
            self._agents.later(share, len(msg.data), lambda: self._look_at_known(session, msg, token, held_up))
        except Overloaded as exc:
            # An agent that keeps sending although it is refused gets few answers, too.
            if not self._agents.answers_refusal(share, self._loop.time()):
                self._guard.drop(session, msg.subject, token)
            elif is_safe_reply(msg.reply):
                self._refuse(session, msg, exc, "")
                self._record(session, exc, agent)

    def _look_at_known(self, session: LiveSession, msg: Msg, token: str | None, held_up: bool) -> None:
        try:
            self._look_at(session, msg, token, in_line=True, held_up=held_up)
        except Exception:
            log.exception("a message for client %s could not be handled", session.core.client_id)

    def _look_at(
        self, session: LiveSession, msg: Msg, token: str | None, *, in_line: bool = False, held_up: bool = False
    ) -> None:
        # Count the message before it is decoded, because a flood would cost the decoding, too.
        standing = self._verifier.standing(token)
        if not self._guard.admits(session, standing, msg.subject, token):
            return
        # Answer to an inbox only. An answer to another subject could be read as an event of the application.
        if msg.reply and not is_safe_reply(msg.reply):
            self._ignore(session)
            return
        try:
            operation = decode_operation(msg.data)
        except BridgeError as exc:
            # Unreadable messages of strangers get few answers, because an answer costs more than dropping them.
            if standing is Standing.GOOD or self._guard.admits_refusal(session):
                self._refuse(session, msg, exc, "")
                self._record(session, exc)
            return
        request_id, principal = _request_id(operation), None
        try:
            # `token_of()` raises if the message has two tokens.
            token = token or token_of(msg)
            principal = self._verifier.verify_now(token, expired_too=not isinstance(operation, CommandRequest))
            if principal is None:
                self._verify_aside(session, msg, operation, token, request_id)
            elif not in_line and self._agents.waits((principal.tenant, principal.sub)):
                # The token was unknown until now, so the message is not in its agent's queue yet.
                self._look_later(session, msg, principal, token)
            else:
                self._act(session, msg, operation, principal, request_id, held_up=held_up)
        except Exception as exc:
            self._fail(session, msg, exc, operation, principal, request_id)

    def used_up(self, session: LiveSession) -> None:
        """Subscribe a session again after its credit was used up: at once, or in a flood after some seconds."""
        self._guard.used_up(session)

    def lose(self, session: LiveSession, msg: Msg) -> None:
        """Answer `client_lost` to a command that another gateway may have executed. Handle other messages as usual."""
        if self._is_command(msg):
            self._answer_unhandled(session, msg, ClientLost(GATEWAY_DIED))
        else:
            self.handle(session, msg)

    def refuse_held_up(self, session: LiveSession, msg: Msg) -> None:
        """Answer a command that was sent while this process was frozen, and that nobody has executed."""
        if self._is_command(msg):
            self._answer_unhandled(session, msg, Unavailable(FROZEN))
        else:
            self.handle(session, msg)

    def answer_lost(self, session: LiveSession, lost: MovingCommand) -> None:
        """Answer `client_lost` to a command that another gateway had in flight when it lost the session."""
        error = ClientLost("the client was lost while the command was under way; it may have run")
        response = failure(lost.request_id, error, session.core.client_id, lost.age_ms)
        self._replies.answer(session.core.view, Answer(lost.call(self._loop.time()), response))

    def sender(self, session: LiveSession, msg: Msg) -> Share | None:
        """Return the share of a message's sender: that of strangers without a good token, None if it is dropped."""
        try:
            token = token_of(msg)
        except Unauthenticated:
            # The message has two tokens.
            token = None
        if not self._guard.admits(session, self._verifier.standing(token), msg.subject, token):
            return None
        try:
            agent = self._verifier.verify_now(token, expired_too=True)
        except BridgeError:
            return STRANGERS
        return STRANGERS if agent is None else (agent.tenant, agent.sub)

    @property
    def freezes(self) -> int:
        """The number of freezes of this process, up to this moment."""
        self._observe()
        return self._freezes

    @property
    def has_backlog(self) -> bool:
        """Whether messages that arrive now may have been sent while this process was frozen."""
        return self._freeze_detector.backlog

    def _is_command(self, msg: Msg) -> bool:
        try:
            return isinstance(decode_operation(msg.data), CommandRequest)
        except BridgeError:
            return False

    def _answer_unhandled(self, session: LiveSession, msg: Msg, error: BridgeError) -> None:
        """Answer a command with an error instead of executing it, if its token is good."""
        if msg.reply and not is_safe_reply(msg.reply):
            self._ignore(session)
            return
        command = decode_operation(msg.data)
        assert isinstance(command, CommandRequest)
        caller, request_id = None, command.request_id or ""
        try:
            caller = self._verifier.verify_now(token_of(msg))
        except BridgeError as exc:
            error = exc
        self._fail(session, msg, error, command, caller, request_id)

    async def watch(self) -> None:
        """Notice freezes of this process, and log dropped messages, for ever."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._observe()
            self._guard.log_dropped()

    def counters(self) -> dict[str, int]:
        """Return the counters since the start, and the used part of what may wait for a turn."""
        return {**self._guard.counters(), "sharesUsedPercent:messages": self._agents.used_percent}

    # --- floods ---

    def _ignore(self, session: LiveSession) -> None:
        """Record a message whose reply is not an inbox. It gets no answer, because that could forge an event."""
        if self._guard.admits_refusal(session):
            self._log_ignored(session, "its reply is not an inbox")
            self._record(session, InvalidRequest("the reply subject is not an inbox"))

    def _log_ignored(self, session: LiveSession, why: str) -> None:
        if count := self._ignored_lines.due():
            log.warning("ignored %d messages, the last for client %s: %s", count, session.core.client_id, why)

    # --- the three operations ---

    def _act(
        self,
        session: LiveSession,
        msg: Msg,
        operation: Operation,
        principal: Principal,
        request_id: str,
        *,
        held_up: bool = False,
    ) -> None:
        require_agent(principal)
        match operation:
            case CommandRequest():
                self._call(session, msg, operation, principal, request_id, held_up=held_up)
            case CancelRequest():
                self._cancel(session, msg, operation, principal)
            case ProbeRequest():
                self._probe(session, msg, operation, principal)

    def _call(
        self,
        session: LiveSession,
        msg: Msg,
        command: CommandRequest,
        principal: Principal,
        request_id: str,
        *,
        held_up: bool,
    ) -> None:
        if not msg.reply:
            self._log_ignored(session, "it has no reply subject")
            raise InvalidRequest("a command needs a reply subject")
        # First, because other errors would reveal a hidden client.
        require(principal, session.core.view)
        held_up = held_up or self._freeze_detector.backlog
        self._refuse_stale(command, held_up)
        progress_to = wanted_subject(msg.headers, msg.reply)
        call = call_of(principal, command, request_id, msg.reply, self._limits, self._loop.time(), progress_to)
        with logs.about(session.core.client_id, call.own_id):
            if session.core.is_quick(command):
                self._dispatch(session, principal, command, call, held_up)
            else:
                self._dispatch_in_turn(session, msg, principal, command, call, held_up)

    def _dispatch(
        self, session: LiveSession, caller: Principal, command: CommandRequest, call: Call, held_up: bool
    ) -> None:
        """Hand a command to its session, or have its idempotency key reserved first."""
        # A key is reserved in JetStream first, which takes time. Without a key the command leaves in this call.
        if command.idempotency_key is not None:
            self._idempotency.take(KeyedRequest(session, caller, command, call, held_up))
            return
        self._idempotency.require_unused(session.core.client_id, call.sub, call.request_id)
        session.perform(session.core.call(caller, command, call, self._loop.time()))

    def _dispatch_in_turn(
        self, session: LiveSession, msg: Msg, caller: Principal, command: CommandRequest, call: Call, held_up: bool
    ) -> None:
        """Take a command with a costly check of its parameters, in its agent's turn.

        Raises `Overloaded` if the tenant's or the agent's share of waiting commands is used up.
        """
        share = (caller.tenant, caller.sub)
        pending = self._begin(session, share, call.request_id)
        try:
            place = self._places.ask(share, len(msg.data) + WAITING_BYTES)
        except Overloaded:
            pending.end()
            raise

        def act() -> None:
            try:
                # The caller may have cancelled, or its deadline may have passed, while the command waited.
                pending.require_wanted()
                if self._loop.time() >= call.deadline:
                    raise DeadlineExceeded("its parameters were not checked before its deadline; it was not executed")
                with logs.about(session.core.client_id, call.own_id):
                    self._dispatch(session, caller, command, call, held_up)
            except Exception as exc:
                self._fail(session, msg, exc, command, caller, call.request_id)
            finally:
                place.release()
                pending.end()

        self._turns.add(Work(share, act))

    def _cancel(self, session: LiveSession, msg: Msg, cancel: CancelRequest, principal: Principal) -> None:
        # A command is in one of three places: waiting for its turn, waiting under a key, or at the application.
        pending = self._pending_of(session, msg, principal, cancel.request_id)
        if pending is not None:
            # It cannot be taken out of the queue. Its turn finds the mark and executes nothing.
            pending.is_cancelled = True
            self._reply(msg, codec.encode(CancelResponse(cancelled=True)))
            return
        if self._idempotency.cancel(session, principal, cancel.request_id, cancel.reason):
            self._reply(msg, codec.encode(CancelResponse(cancelled=True)))
            return
        effects = session.core.cancel(principal, cancel.request_id, cancel.reason, self._loop.time())
        session.perform(effects)
        self._reply(msg, codec.encode(CancelResponse(cancelled=bool(effects))))

    def _probe(self, session: LiveSession, msg: Msg, probe: ProbeRequest, principal: Principal) -> None:
        core, now = session.core, self._loop.time()
        if principal.tenant != core.view.tenant:
            raise ClientNotFound
        answer, size = ProbeResponse([], [], []), 0
        for request_id in probe.request_ids:
            outcome = self._replies.outcomes.get((core.client_id, principal.sub, request_id), now)
            if (
                core.is_asked_after(principal, request_id, now)
                or self._pending_of(session, msg, principal, request_id) is not None
                or self._idempotency.is_waiting(core.client_id, principal.sub, request_id)
            ):
                answer.in_flight.append(request_id)
            elif outcome is None:
                answer.unknown.append(request_id)
            elif self._replies.audit.is_behind:
                # Report no outcome before its audit record has left.
                answer.in_flight.append(request_id)
            elif size == 0 or size + len(outcome) <= MAX_OUTCOMES_BYTES:
                answer.outcomes.append(msgspec.Raw(outcome))
                size += len(outcome)
            else:
                # Report its outcome at the next probe.
                answer.in_flight.append(request_id)
        if not answer.in_flight and not answer.outcomes:
            # Refuse only a caller without a command here. Its own commands stay visible if the application renames.
            require(principal, core.view)
        self._reply(msg, codec.encode(answer))

    # --- tokens that need a look at the key set ---

    def _verify_aside(
        self, session: LiveSession, msg: Msg, operation: Operation, token: str | None, request_id: str
    ) -> None:
        # Fetching a key set may take seconds, so a flood of new tokens would hold that many tasks.
        if self._verifying >= MAX_VERIFYING:
            raise Overloaded("too many new tokens are being verified; try again in a moment")
        is_command = isinstance(operation, CommandRequest)
        pending = self._begin(session, token, request_id) if is_command else None
        self._verifying += 1
        verifying = self._verify_then_act(session, msg, operation, token, request_id, pending)
        self._tasks.create_task(verifying, name="verify a token")

    async def _verify_then_act(
        self,
        session: LiveSession,
        msg: Msg,
        operation: Operation,
        token: str | None,
        request_id: str,
        pending: Pending | None,
    ) -> None:
        principal = None
        try:
            expired_too = not isinstance(operation, CommandRequest)
            principal = await self._verifier.verify(token, expired_too=expired_too)
            if pending is not None:
                pending.require_wanted()
                # A command that now waits for its turn begins to be pending again.
                pending.end()
            self._act(session, msg, operation, principal, request_id)
        except Exception as exc:
            self._fail(session, msg, exc, operation, principal, request_id)
        finally:
            self._verifying -= 1
            if pending is not None:
                pending.end()

    def _begin(self, session: LiveSession, caller: str | Share | None, request_id: str) -> Pending:
        """Note a command as pending, so that a probe finds it and a cancel ends it. Raises `Conflict` for a used id."""
        return Pending(self._pending, (session.core.client_id, caller, request_id))

    def _pending_of(self, session: LiveSession, msg: Msg, principal: Principal, request_id: str) -> Pending | None:
        """Return this caller's pending command with an id, or None."""
        if not self._pending:
            return None
        client_id, waiting, verifying = session.core.client_id, (principal.tenant, principal.sub), token_of(msg)
        return self._pending.get((client_id, waiting, request_id)) or self._pending.get(
            (client_id, verifying, request_id)
        )

    # --- commands that nobody waits for any more ---

    def _refuse_stale(self, command: CommandRequest, held_up: bool) -> None:
        """Refuse commands that arrive after their deadline, and commands left over from a freeze.

        A command with a key may have been executed before the freeze. Its entry tells.
        """
        timeout_ms = command.timeout_ms or self._limits.command_timeout_ms
        if is_past_deadline(command, timeout_ms, self._connection.clock.earliest_ms()):
            raise DeadlineExceeded("by its `sentAt` it came after its deadline; it was not executed")
        if held_up and command.idempotency_key is None:
            raise Unavailable(FROZEN)

    def _observe(self) -> None:
        if self._freeze_detector.observe(self._loop.time()):
            self._freezes += 1
            log.warning("this process was frozen; refusing the commands that were sent meanwhile")
            self._tasks.create_task(self._wait_out_backlog(self._freezes), name="wait out the backlog")

    async def _wait_out_backlog(self, freeze: int) -> None:
        """Messages that NATS held for us arrive before the answer to a flush that is sent now.

        If the process has been frozen again meanwhile, the wait for that freeze goes on.
        """
        try:
            await self._connection.flush()
        except Unavailable:
            # The connection broke, and NATS queues nothing for a closed connection: there is no backlog to wait for.
            log.info("NATS was lost while this process was frozen: its messages for us are lost")
        await asyncio.sleep(BACKLOG_SETTLE_SECONDS)
        # The last freeze may have ended just now.
        self._observe()
        if freeze == self._freezes:
            self._freeze_detector.backlog_done()

    # --- replies ---

    def _fail(
        self,
        session: LiveSession,
        msg: Msg,
        error: Exception,
        operation: Operation,
        caller: Principal | None,
        request_id: str,
    ) -> None:
        """Turn any exception into an answer. None may escape into the subscription or a task."""
        if isinstance(error, Unauthenticated) and not self._guard.admits_refusal(session):
            # A flood of bad tokens: say nothing, and write no audit record.
            return
        if not isinstance(error, BridgeError):
            log.error("a command for client %s failed", session.core.client_id, exc_info=error)
            error = Internal("the gateway failed; its log says why")
        self._refuse(session, msg, error, request_id)
        if isinstance(operation, CommandRequest):
            self._record(session, error, caller, operation, request_id)

    def _refuse(self, session: LiveSession, msg: Msg, error: BridgeError, request_id: str) -> None:
        response = failure(request_id, error, session.core.client_id)
        assert response.error is not None
        self._replies.count(response)
        self._reply(msg, codec.encode(response), error_headers(response.error))

    def _record(
        self,
        session: LiveSession,
        error: BridgeError,
        caller: Principal | None = None,
        command: CommandRequest | None = None,
        request_id: str | None = None,
    ) -> None:
        self._replies.audit.refused(session.core.view, error, caller, command, request_id)

    def _reply(self, msg: Msg, body: bytes, headers: dict[str, str] | None = None) -> None:
        if not msg.reply:
            return
        try:
            self._connection.publish_now(msg.reply, body, headers=headers)
        except (Unavailable, PayloadTooLarge) as exc:
            if count := self._unanswered_lines.due():
                log.info("could not answer %d messages, the last on %s: %s", count, msg.subject, exc.message)


def _request_id(operation: Operation) -> str:
    match operation:
        case CommandRequest(request_id=given):
            return given or new_request_id()
        case CancelRequest(request_id=given):
            return given
        case ProbeRequest():
            return ""
