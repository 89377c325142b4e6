"""What agents send to a session's subject: `call`, `cancel` and `probe`, decided on the spot.

The subscription's messages are handled one after the other and without yielding, so a probe never overtakes the command
that it asks about. Only a token that needs the key set of a remote issuer is verified in a task of its own; until then
its command is known as being verified.
"""

import asyncio
import logging
import time

import msgspec
from nats.aio.msg import Msg

from gateway.idempotency import Idempotency, Request
from gateway.progress import wanted_subject
from gateway.sessions import LiveSession, Sessions
from gateway.thaw import Thaw
from protocol import codec
from protocol.access import Principal, require, require_agent
from protocol.errors import (
    BridgeError,
    ClientNotFound,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
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
)
from protocol.runtime import logs
from protocol.runtime.auth import Verifier, token_of
from protocol.runtime.nats import Connection
from protocol.subjects import is_safe_reply

PAST_DEADLINE_SECONDS = 2.0
MAX_VERIFYING = 256
MAX_OUTCOMES_BYTES = 512 * 1024
THAW_TICK_SECONDS = 0.25
THAW_SETTLE_SECONDS = 0.05

log = logging.getLogger(__name__)


class Commands:
    """Serves the command subjects of all sessions."""

    def __init__(
        self,
        connection: Connection,
        sessions: Sessions,
        verifier: Verifier,
        idempotency: Idempotency,
        tasks: asyncio.TaskGroup,
        default_timeout_ms: int,
    ) -> None:
        self._connection = connection
        self._sessions = sessions
        self._verifier = verifier
        self._tasks = tasks
        self._idempotency = idempotency
        self._default_timeout_ms = default_timeout_ms
        self._verifying: set[tuple[str, str | None, str]] = set()
        self._loop = asyncio.get_running_loop()
        self._thaw = Thaw(self._loop.time())
        sessions.on_command = self.handle

    def handle(self, session: LiveSession, msg: Msg) -> None:
        """Handle one message; whatever is wrong with it, its sender gets a code and the subscription goes on."""
        self._observe()
        if msg.reply and not is_safe_reply(msg.reply):
            log.warning("ignored a message for client %s: its reply is not an inbox", session.core.client_id)
            self._record(session, msg, InvalidRequest("the reply subject is not an inbox"))
            return
        try:
            operation = decode_operation(msg.data)
        except BridgeError as exc:
            self._refuse(session, msg, exc, "")
            self._record(session, msg, exc)
            return
        request_id, principal = _request_id(operation), None
        try:
            token = token_of(msg)
            principal = self._verifier.verify_now(token, expired_too=not isinstance(operation, CommandRequest))
            if principal is None:
                self._verify_aside(session, msg, operation, token, request_id)
            else:
                self._act(session, msg, operation, principal, request_id)
        except Exception as exc:
            self._fail(session, msg, exc, operation, principal, request_id)

    async def watch_thaw(self) -> None:
        """Notice freezes of this process, for ever."""
        while True:
            await asyncio.sleep(THAW_TICK_SECONDS)
            self._observe()

    # --- the three operations ---

    def _act(self, session: LiveSession, msg: Msg, operation: Operation, principal: Principal, request_id: str) -> None:
        require_agent(principal)
        match operation:
            case CommandRequest():
                self._call(session, msg, operation, principal, request_id)
            case CancelRequest():
                self._cancel(session, msg, operation, principal)
            case ProbeRequest():
                self._probe(session, msg, operation, principal)

    def _call(
        self, session: LiveSession, msg: Msg, command: CommandRequest, principal: Principal, request_id: str
    ) -> None:
        if not msg.reply:
            log.warning("ignored a command for client %s: it has no reply subject", session.core.client_id)
            raise InvalidRequest("a command needs a reply subject")
        require(principal, session.core.view)  # before anything that could tell a hidden client from none
        self._refuse_stale(command)
        with logs.about(session.core.client_id, command.caller_request_id or request_id):
            progress_to = wanted_subject(msg.headers, msg.reply)
            if command.idempotency_key is not None:
                self._idempotency.take(Request(session, principal, command, request_id, msg.reply, progress_to))
                return
            self._idempotency.require_unused(session.core.client_id, principal.sub, request_id)
            effects = session.core.call(principal, command, request_id, msg.reply, self._loop.time(), progress_to)
            session.perform(effects)

    def _cancel(self, session: LiveSession, msg: Msg, cancel: CancelRequest, principal: Principal) -> None:
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
        token = token_of(msg)
        answer, size = ProbeResponse([], [], []), 0
        for request_id in probe.request_ids:
            outcome = self._sessions.outcomes.get((core.client_id, principal.sub, request_id), now)
            if (
                core.is_asked_after(principal, request_id, now)
                or (core.client_id, token, request_id) in self._verifying
                or self._idempotency.is_waiting(core.client_id, principal.sub, request_id)
            ):
                answer.in_flight.append(request_id)
            elif outcome is None:
                answer.unknown.append(request_id)
            elif size == 0 or size + len(outcome) <= MAX_OUTCOMES_BYTES:
                answer.outcomes.append(msgspec.Raw(outcome))
                size += len(outcome)
            else:
                answer.in_flight.append(request_id)  # its outcome goes with the next probe
        if not answer.in_flight and not answer.outcomes:  # else it is the caller's, whatever the client is called now
            require(principal, core.view)
        self._reply(msg, codec.encode(answer))

    # --- tokens that need a look at the key set ---

    def _verify_aside(
        self, session: LiveSession, msg: Msg, operation: Operation, token: str | None, request_id: str
    ) -> None:
        if len(self._verifying) >= MAX_VERIFYING:
            raise Overloaded("too many new tokens are being verified; try again in a moment")
        mark = (session.core.client_id, token, request_id)
        self._verifying.add(mark)
        self._tasks.create_task(self._verify_then_act(session, msg, operation, token, mark), name="verify a token")

    async def _verify_then_act(
        self,
        session: LiveSession,
        msg: Msg,
        operation: Operation,
        token: str | None,
        mark: tuple[str, str | None, str],
    ) -> None:
        request_id, principal = mark[2], None
        try:
            expired_too = not isinstance(operation, CommandRequest)
            principal = await self._verifier.verify(token, expired_too=expired_too)
            self._act(session, msg, operation, principal, request_id)
        except Exception as exc:
            self._fail(session, msg, exc, operation, principal, request_id)
        finally:
            self._verifying.discard(mark)

    # --- commands that nobody waits for any more ---

    def _refuse_stale(self, command: CommandRequest) -> None:
        """Refuse what lay in a buffer for longer than its caller waits, and all that a freeze has left over."""
        timeout_ms = command.timeout_ms or self._default_timeout_ms
        if command.sent_at is not None:
            late_ms = time.time() * 1000 - command.sent_at - timeout_ms
            if late_ms > PAST_DEADLINE_SECONDS * 1000:
                raise DeadlineExceeded("by its `sentAt` and this clock it came after its deadline; it was not executed")
        if self._thaw.backlog:
            raise Unavailable("the gateway was frozen while this was sent; it was not executed, try again")

    def _observe(self) -> None:
        if self._thaw.observe(self._loop.time()):
            log.warning("this process was frozen; refusing the commands that were sent meanwhile")
            self._tasks.create_task(self._wait_out_backlog(), name="wait out the backlog")

    async def _wait_out_backlog(self) -> None:
        """What NATS held for us arrives before the answer to a flush that is sent now."""
        try:
            await self._connection.flush()
        except Unavailable:
            log.info("NATS left while this process was frozen: what it held for us is gone")
        await asyncio.sleep(THAW_SETTLE_SECONDS)
        self._thaw.backlog_done()

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
        """Turn whatever went wrong into an answer; nothing may escape into the subscription or a task."""
        if not isinstance(error, BridgeError):
            log.error("a command for client %s failed", session.core.client_id, exc_info=error)
            error = Internal("the gateway failed; its log says why")
        self._refuse(session, msg, error, request_id)
        if isinstance(operation, CommandRequest):
            self._record(session, msg, error, caller, operation, request_id)

    def _refuse(self, session: LiveSession, msg: Msg, error: BridgeError, request_id: str) -> None:
        response = failure(request_id, error, session.core.client_id)
        assert response.error is not None
        self._reply(msg, codec.encode(response), error_headers(response.error))

    def _record(
        self,
        session: LiveSession,
        msg: Msg,
        error: BridgeError,
        caller: Principal | None = None,
        command: CommandRequest | None = None,
        request_id: str | None = None,
    ) -> None:
        self._sessions.audit.refused(session.core.view, error, msg.reply, caller, command, request_id)

    def _reply(self, msg: Msg, body: bytes, headers: dict[str, str] | None = None) -> None:
        if not msg.reply:
            return
        try:
            self._connection.publish_now(msg.reply, body, headers=headers)
        except (Unavailable, PayloadTooLarge) as exc:
            log.info("could not answer on %s: %s", msg.subject, exc.message)


def _request_id(operation: Operation) -> str:
    match operation:
        case CommandRequest(request_id=given):
            return given or new_request_id()
        case CancelRequest(request_id=given):
            return given
        case ProbeRequest():
            return ""
