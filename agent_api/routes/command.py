"""`POST /api/command`, the hot path: bare ASGI, because a framework's request costs more than the command itself."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

import msgspec
from starlette.types import Receive, Scope, Send

from agent_api.commands.admission import Admission
from agent_api.commands.audit import CommandTarget
from agent_api.commands.gather import Gathered
from agent_api.commands.orders import Order, read_order, write_result
from agent_api.commands.send import OnClientProgress, Sender
from agent_api.http import sse
from agent_api.http.asgi import Head, read_head, require_json, write_answer
from agent_api.http.body import IncomingBody
from agent_api.http.problems import HttpAnswer, http_answer_of
from agent_api.http.sharing import belonging
from agent_api.http.waiting import CallerGone, Waits
from agent_api.http.writing import offered
from agent_api.routes.command_stream import stream
from agent_api.settings import ApiSettings
from protocol import codec
from protocol.access import Principal, require_agent
from protocol.errors import BridgeError, Internal, Overloaded, PayloadTooLarge, Unauthenticated, from_body
from protocol.messages import CommandResponse
from protocol.runtime import logs
from protocol.runtime.tokens import Verifier, bearer

REPLAYED = (b"idempotency-replayed", b"true")
ReadOrder = Callable[[bytes, Head, Principal], Awaitable[Order | HttpAnswer]]

log = logging.getLogger(__name__)


def _nothing_named(principal: Principal) -> None:
    """Name no target: that of a command stands in its body."""


class Reading(NamedTuple):
    """How a request becomes a command: `read` makes an order of its body, or answers at once.

    `named` returns the target that the request names otherwise, for the record of a refusal.
    """

    read: ReadOrder
    named: Callable[[Principal], CommandTarget | None] = _nothing_named


class CommandEndpoint:
    """Serves commands."""

    def __init__(
        self,
        settings: ApiSettings,
        verifier: Verifier,
        sender: Sender,
        admission: Admission,
        waits: Waits,
    ) -> None:
        self._settings = settings
        self._verifier = verifier
        self._sender = sender
        self._admission = admission
        self._waits = waits
        self._reading = Reading(self._read_command)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the path and the method have been looked at."""
        await self.serve(scope, receive, send, self._reading)

    async def serve(self, scope: Scope, receive: Receive, send: Send, reading: Reading) -> None:
        """Answer one request, which is read in this way."""
        head = read_head(scope["headers"])
        head.belong_to = belonging(scope)
        if sse.is_wanted(head.accept):
            await stream(partial(self._answer, head, reading), receive, send)
            return
        answer = await self._answer(head, reading, receive)
        if answer is None:
            return
        write_whole = None if answer.headers or answer.close else offered(scope)
        if write_whole is None or not write_whole(scope, answer.status, answer.body):
            await write_answer(send, receive, answer)

    async def _answer(
        self, head: Head, reading: Reading, receive: Receive, heard: OnClientProgress | None = None
    ) -> HttpAnswer | None:
        """Return the answer to a request, or None if its caller has gone. It raises nothing."""
        body = IncomingBody(receive, head.length)
        try:
            return await self._serve(head, reading, body, heard)
        except CallerGone:
            return None
        except Exception as exc:
            return _refusal(exc, close=self._admission.draining or _leaves_too_much(exc, body))

    async def _serve(
        self, head: Head, reading: Reading, body: IncomingBody, heard: OnClientProgress | None
    ) -> HttpAnswer:
        token, principal = await self._authenticate(head)
        try:
            return await self._admit(head, reading.read, body, principal, token, heard)
        except CallerGone:
            raise
        except Exception as exc:
            self._sender.audit.refused(exc, principal, named=reading.named(principal))
            raise

    async def _admit(
        self,
        head: Head,
        read: ReadOrder,
        body: IncomingBody,
        principal: Principal,
        token: str | None,
        heard: OnClientProgress | None,
    ) -> HttpAnswer:
        require_agent(principal)
        require_json(head)
        limit = self._settings.max_message_bytes
        if head.length is not None and head.length > limit:
            raise PayloadTooLarge(f"the body has {head.length} bytes, but at most {limit} are accepted")
        piece = self._admission.admit((principal.tenant, principal.sub), give_back=body.give_back)
        try:
            data = await body.read(limit, piece)
            piece.keep()  # at once, because reclaiming it later would cancel more than the reading
            order = await read(data, head, principal)
            if isinstance(order, HttpAnswer):
                return order
            return await self._execute(order, principal, token, body, heard)
        finally:
            self._admission.release(piece)

    async def _read_command(self, data: bytes, head: Head, principal: Principal) -> Order:
        settings = self._settings
        return read_order(data, settings.command_timeout_ms, settings.max_command_timeout_ms, head.idempotency_key)

    async def _authenticate(self, head: Head) -> tuple[str | None, Principal]:
        """Return the token and its principal. It waits only if a key set must be fetched."""
        try:
            token = bearer(*head.authorization)
            principal = self._verifier.verify_now(token) or await self._verifier.verify(token)
        except Unauthenticated:
            self._sender.audit.unauthenticated()
            raise
        if head.belong_to is not None:
            head.belong_to(principal.tenant, principal.sub)
        return token, principal

    async def _execute(
        self, order: Order, principal: Principal, token: str | None, body: IncomingBody, heard: OnClientProgress | None
    ) -> HttpAnswer:
        """Send the order and return its answer. From here on errors have the request's id."""
        try:
            work = self._sender.send(order, principal, token, heard)
            outcome = await self._waits.for_answer(work, body.receive, body.task)
            return _answer(outcome, order)
        except CallerGone:
            raise
        except Exception as exc:
            return _refusal(exc, order)


def _leaves_too_much(error: Exception, body: IncomingBody) -> bool:
    """Tell whether a refusal closes the connection, because too much of the body is still to come."""
    return isinstance(error, PayloadTooLarge) or (isinstance(error, Overloaded) and body.is_partial)


def _answer(outcome: CommandResponse | Gathered, order: Order) -> HttpAnswer:
    """Return the answer for an order's outcome, success or error."""
    if isinstance(outcome, Gathered):
        return HttpAnswer(200, codec.encode(outcome))
    headers = (REPLAYED,) if outcome.replayed else ()
    if outcome.error is None:
        return HttpAnswer(200, write_result(outcome, order.client_id or outcome.client_id or ""), headers)
    refusal = http_answer_of(from_body(outcome.error), order.request_id)
    return msgspec.structs.replace(refusal, headers=refusal.headers + headers) if headers else refusal


def _refusal(error: Exception, order: Order | None = None, *, close: bool = False) -> HttpAnswer:
    """Return the answer to a failed request. An unexpected exception is logged, and the caller gets `internal`."""
    request_id = order.request_id if order else None
    if not isinstance(error, BridgeError):
        with logs.about(order.client_id if order else None, request_id):
            log.error("a command failed", exc_info=error)
        error = Internal("the request failed; the log of the process says why")
    return http_answer_of(error, request_id, close=close)
