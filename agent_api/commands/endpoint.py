"""`POST /api/command`, the hot path: bare ASGI, for a framework's request costs more than the command itself."""

import logging
from functools import partial

import msgspec
from starlette.types import Receive, Scope, Send

from agent_api.commands.bodies import Order, read_order, write_result
from agent_api.commands.gathering import Gathered
from agent_api.commands.intake import Intake
from agent_api.commands.sending import Commands, Heard
from agent_api.commands.streaming import stream
from agent_api.http import sse
from agent_api.http.asgi import Head, read_body, read_head, require_json, write_answer
from agent_api.http.problems import Answer, answer_of
from agent_api.http.waiting import CallerGone, Waits
from agent_api.http.writing import offered
from agent_api.settings import ApiSettings
from protocol import codec
from protocol.access import Principal, require_agent
from protocol.errors import BridgeError, Internal, PayloadTooLarge, Unauthenticated, from_body
from protocol.messages import CommandResponse
from protocol.runtime import logs
from protocol.runtime.auth import Verifier, bearer

REPLAYED = (b"idempotency-replayed", b"true")

log = logging.getLogger(__name__)


class CommandEndpoint:
    """Serves commands."""

    def __init__(
        self,
        settings: ApiSettings,
        verifier: Verifier,
        commands: Commands,
        intake: Intake,
        waits: Waits,
    ) -> None:
        self._settings = settings
        self._verifier = verifier
        self._commands = commands
        self._intake = intake
        self._waits = waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the path and the method have been looked at."""
        head = read_head(scope["headers"])
        if sse.is_wanted(head.accept):
            await stream(partial(self._answer, head), receive, send)
            return
        answer = await self._answer(head, receive)
        if answer is None:
            return
        write_whole = None if answer.headers or answer.close else offered(scope)
        if write_whole is None or not write_whole(scope, answer.status, answer.body):
            await write_answer(send, receive, answer)

    async def _answer(self, head: Head, receive: Receive, heard: Heard | None = None) -> Answer | None:
        """Return the answer to a request, whatever goes wrong; None where its caller has gone."""
        try:
            return await self._serve(head, receive, heard)
        except CallerGone:
            return None
        except Exception as exc:
            return _refusal(exc, close=self._intake.draining or isinstance(exc, PayloadTooLarge))

    async def _serve(self, head: Head, receive: Receive, heard: Heard | None) -> Answer:
        token, principal = await self._authenticate(head)
        try:
            return await self._admit(head, receive, principal, token, heard)
        except CallerGone:
            raise
        except Exception as exc:
            self._commands.refusals.refused(exc, principal)
            raise

    async def _admit(
        self, head: Head, receive: Receive, principal: Principal, token: str | None, heard: Heard | None
    ) -> Answer:
        require_agent(principal)
        require_json(head)
        limit = self._settings.max_message_bytes
        if head.length is not None and head.length > limit:
            raise PayloadTooLarge(f"the body has {head.length} bytes, but at most {limit} are accepted")
        reserved = limit if head.length is None else head.length
        self._intake.admit(reserved)
        try:
            body = await read_body(receive, limit)
            order = read_order(
                body, self._settings.command_timeout_ms, self._settings.max_command_timeout_ms, head.idempotency_key
            )
            return await self._execute(order, principal, token, receive, heard)
        finally:
            self._intake.release(reserved)

    async def _authenticate(self, head: Head) -> tuple[str | None, Principal]:
        """Return the token and whom it speaks for, without a detour where no key set has to be asked."""
        try:
            token = bearer(head.authorization)
            return token, self._verifier.verify_now(token) or await self._verifier.verify(token)
        except Unauthenticated:
            self._commands.refusals.unauthenticated()
            raise

    async def _execute(
        self, order: Order, principal: Principal, token: str | None, receive: Receive, heard: Heard | None
    ) -> Answer:
        """Send the order and return its answer; from here on, refusals carry the request's id."""
        try:
            outcome = await self._waits.for_answer(self._commands.send(order, principal, token, heard), receive)
            return _answer(outcome, order)
        except CallerGone:
            raise
        except Exception as exc:
            return _refusal(exc, order)


def _answer(outcome: CommandResponse | Gathered, order: Order) -> Answer:
    """Return what came of an order, success or error."""
    if isinstance(outcome, Gathered):
        return Answer(200, codec.encode(outcome))
    headers = (REPLAYED,) if outcome.replayed else ()
    if outcome.error is None:
        return Answer(200, write_result(outcome, order.client_id or outcome.client_id or ""), headers)
    refusal = answer_of(from_body(outcome.error), order.request_id)
    return msgspec.structs.replace(refusal, headers=refusal.headers + headers) if headers else refusal


def _refusal(error: Exception, order: Order | None = None, *, close: bool = False) -> Answer:
    """Return the answer to a failed request; what is not an error of ours goes to the log, not to the caller."""
    request_id = order.request_id if order else None
    if not isinstance(error, BridgeError):
        with logs.about(order.client_id if order else None, request_id):
            log.error("a command failed", exc_info=error)
        error = Internal("the request failed; the log of the process says why")
    return answer_of(error, request_id, close=close)
