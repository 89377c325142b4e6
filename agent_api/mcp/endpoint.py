"""`/mcp` over HTTP: access, the methods of both eras, and the loading of the library."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

import msgspec
from starlette.types import Receive, Scope, Send

from agent_api.http.asgi import Head, read_head, require_json, write_answer
from agent_api.http.body import IncomingBody
from agent_api.http.problems import Header, HttpAnswer, HttpFault, http_answer_of
from agent_api.http.sharing import belonging
from agent_api.http.waiting import CallerGone
from agent_api.mcp.answers import AnswerWriter
from agent_api.mcp.callers import McpCaller, McpHead, read_mcp_head
from agent_api.mcp.context import McpContext
from agent_api.mcp.discovery import MCP_PATH, AuthorizationDiscovery
from agent_api.mcp.messages import (
    CANCELLED_REQUEST,
    PARSED_FACTOR,
    RpcAnswer,
    RpcMessage,
    error_message,
    fault_code,
    fault_message,
    is_id,
    notification,
    read_message,
)
from agent_api.routes.tools_query import NARROWING, narrowing_of, read_parameters
from protocol.access import Principal, require_agent
from protocol.errors import (
    BridgeError,
    Cancelled,
    Internal,
    InvalidRequest,
    PayloadTooLarge,
    PermissionDenied,
    Unauthenticated,
)
from protocol.origins import Origins
from protocol.runtime.tokens import Verifier, bearer
from protocol.shares import Piece

PATH = MCP_PATH
ALLOW: Header = (b"allow", b"GET, POST, DELETE")
LISTEN, INITIALIZE, CANCELLED = "subscriptions/listen", "initialize", "notifications/cancelled"
MAX_LISTEN_BYTES = 4 * 1024
PRIMED_SINCE = "2025-11-25"  # the first revision with streams that have ids without data
LIST_CHANGED = notification("notifications/tools/list_changed")
NOT_INSTALLED = (
    "this agent API has no Model Context Protocol: install the extra `mcp` (pip install 'agentbridge-nats[mcp]')"
)

log = logging.getLogger(__name__)


class McpLibrary(Protocol):
    """The part of the endpoint that needs the library."""

    def is_modern(self, version: str | None) -> bool:
        """Tell whether a request belongs to the modern era, which has no handshake."""

    async def answer(self, caller: McpCaller, message: RpcMessage, head: McpHead, writer: AnswerWriter) -> RpcAnswer:
        """Return the answer to a request."""


Load = Callable[[McpContext], McpLibrary]


class McpEndpoint:
    """Serves the Model Context Protocol. `load` imports the library, and raises `ImportError` if there is none."""

    def __init__(
        self,
        context: McpContext,
        verifier: Verifier,
        origins: Origins,
        discovery: AuthorizationDiscovery,
        load: Load,
    ) -> None:
        self._context = context
        self._discovery = discovery
        self._verifier = verifier
        self._origins = origins
        self._load = load
        self._library: McpLibrary | None = None
        self._loading = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await self._serve(scope, receive, send)
        except CallerGone:
            pass
        except Exception as exc:
            await write_answer(send, receive, self._refusal(exc, scope))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        head, mcp_head = read_head(scope["headers"]), read_mcp_head(scope["headers"])
        self._require_own_page(mcp_head)
        token, principal = await self._authenticate(head, scope)
        narrowing = narrowing_of(read_parameters(scope["query_string"], NARROWING))
        library = await self._loaded()
        caller = McpCaller(principal, token, narrowing, mcp_head.session)
        method, modern = scope["method"], library.is_modern(mcp_head.version)
        if method == "POST":
            try:
                await self._post(library, caller, head, mcp_head, receive, send)
            except BridgeError as exc:
                self._context.sender.audit.refused(exc, principal)
                raise
        elif modern or method not in ("GET", "DELETE"):
            allowed = (b"allow", b"POST") if modern else ALLOW
            raise HttpFault(HTTPStatus.METHOD_NOT_ALLOWED, "this path takes POST in this revision", allowed)
        elif method == "DELETE":  # ends a session, of which we store nothing
            await write_answer(send, receive, HttpAnswer(200, b"{}"))
        else:
            await self._tell_changes(caller, mcp_head, receive, send)

    # --- access ---

    def _require_own_page(self, head: McpHead) -> None:
        origin = head.headers.get("origin")
        if not self._origins.allows(origin):
            raise PermissionDenied("this origin is not in AGENTBRIDGE_ALLOWED_ORIGINS")

    async def _authenticate(self, head: Head, scope: Scope) -> tuple[str | None, Principal]:
        try:
            token = bearer(*head.authorization)
            principal = self._verifier.verify_now(token) or await self._verifier.verify(token)
        except Unauthenticated:
            self._context.sender.audit.unauthenticated()
            raise
        belong_to = belonging(scope)
        if belong_to is not None:
            belong_to(principal.tenant, principal.sub)
        require_agent(principal)
        return token, principal

    async def _loaded(self) -> McpLibrary:
        """Return the library. It is imported in another thread, because that takes most of a second."""
        if self._library is None:
            async with self._loading:
                if self._library is None:
                    try:
                        self._library = await asyncio.to_thread(self._load, self._context)
                    except ImportError as exc:
                        log.warning("a request of the Model Context Protocol was refused: %s", exc)
                        raise HttpFault(HTTPStatus.NOT_IMPLEMENTED, NOT_INSTALLED) from exc
        return self._library

    # --- one message ---

    async def _post(
        self, library: McpLibrary, caller: McpCaller, head: Head, mcp_head: McpHead, receive: Receive, send: Send
    ) -> None:
        require_json(head)
        if not mcp_head.takes_json or not mcp_head.takes_events:
            sentence = "the header Accept must have application/json and text/event-stream"
            raise HttpFault(HTTPStatus.NOT_ACCEPTABLE, sentence)
        body, limit = IncomingBody(receive, head.length), self._context.settings.max_message_bytes
        if head.length is not None and head.length > limit:
            raise PayloadTooLarge(f"the body has {head.length} bytes, but at most {limit} are accepted")
        holder = (caller.principal.tenant, caller.principal.sub)
        piece = self._context.admission.admit(holder, give_back=body.give_back)
        with _RequestPlace(self._context, piece) as held:
            data = await body.read(limit, piece)
            try:
                message = read_message(data)
            except InvalidRequest as exc:
                self._context.sender.audit.refused(exc, caller.principal)
                answer = fault_message(None, exc, fault_code(exc), HTTPStatus.BAD_REQUEST)
                await write_answer(send, receive, HttpAnswer(answer.status, answer.body))
                return
            if not message.is_request:
                piece.keep()
                await self._take_notification(library, caller, message, mcp_head)
                await write_answer(send, receive, HttpAnswer(HTTPStatus.ACCEPTED, b""))
                return
            if message.method == LISTEN and len(data) > MAX_LISTEN_BYTES:  # it stays in memory while the stream is open
                sentence = f"the body of {LISTEN} has {len(data)} bytes, but at most {MAX_LISTEN_BYTES} are accepted"
                raise PayloadTooLarge(sentence)
            del data
            piece.grow(PARSED_FACTOR * message.parsed_bytes)
            await self._answer(library, caller, message, mcp_head, held, receive, send)

    async def _take_notification(
        self, library: McpLibrary, caller: McpCaller, message: RpcMessage, head: McpHead
    ) -> None:
        ident = (message.params or {}).get("requestId")
        if message.method == CANCELLED and not library.is_modern(head.version) and is_id(ident):
            assert isinstance(ident, int | str)
            await self._context.cancels.cancel(caller, ident)

    async def _answer(
        self,
        library: McpLibrary,
        caller: McpCaller,
        message: RpcMessage,
        head: McpHead,
        held: "_RequestPlace",
        receive: Receive,
        send: Send,
    ) -> None:
        headers: tuple[Header, ...] = ()
        if message.method == INITIALIZE and not library.is_modern(head.version):
            headers = ((b"mcp-session-id", secrets.token_hex(16).encode()),)
        writer = AnswerWriter(receive, send, headers)

        async def work(writer: AnswerWriter) -> RpcAnswer | None:
            try:
                answering = library.answer(caller, message, head, writer)
                return await self._context.waits.for_answer(answering, receive)
            except CallerGone:
                return None
            except Cancelled as exc:
                assert isinstance(message.id, int | str)
                return fault_message(message.id, exc, status=HTTPStatus.SERVICE_UNAVAILABLE)

        if message.method == LISTEN:
            with self._context.streams.place(caller):
                held.release()
                await writer.answer(work)
            return
        held.keep()
        assert isinstance(message.id, int | str)
        cancelling = _Cancelling()
        with self._context.cancels.in_flight(caller, message.id, cancelling):
            answered = await writer.answer(work, cancelling.begin)
        if not answered:
            await writer.finish(error_message(message.id, CANCELLED_REQUEST, "the request was cancelled"))

    # --- the older era's stream ---

    async def _tell_changes(self, caller: McpCaller, head: McpHead, receive: Receive, send: Send) -> None:
        if not head.takes_events:
            raise HttpFault(HTTPStatus.NOT_ACCEPTABLE, "the header Accept must have text/event-stream")
        writer = AnswerWriter(receive, send)

        async def work(writer: AnswerWriter) -> None:
            try:
                await self._context.waits.for_answer(self._pass_changes_on(caller, head, writer), receive)
            except (CallerGone, Cancelled):
                pass
            except BridgeError as exc:
                log.debug("a stream of changes ended: %s", exc.message)

        with self._context.streams.place(caller):
            await writer.begin(primed=(head.version or "") >= PRIMED_SINCE)
            await writer.answer(work)

    async def _pass_changes_on(self, caller: McpCaller, head: McpHead, writer: AnswerWriter) -> None:
        is_told = "last-event-id" in head.headers  # send a change, because it may have missed some
        async for _ in self._context.streams.changes(caller):
            if is_told:
                writer.notify(LIST_CHANGED)
            is_told = True

    def _refusal(self, error: Exception, scope: Scope) -> HttpAnswer:
        if not isinstance(error, BridgeError):
            log.error("a request of the Model Context Protocol failed", exc_info=error)
            error = Internal("the request failed; the log of the process says why")
        answer = http_answer_of(error, close=self._context.admission.draining or isinstance(error, PayloadTooLarge))
        challenge = self._discovery.challenge(scope) if isinstance(error, Unauthenticated) else None
        return answer if challenge is None else msgspec.structs.replace(answer, headers=(challenge,))


class _RequestPlace:
    """A request's piece of the process's capacity. It is released once."""

    def __init__(self, context: McpContext, piece: Piece) -> None:
        self._admission = context.admission
        self._piece: Piece | None = piece

    def __enter__(self) -> "_RequestPlace":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def keep(self) -> None:
        """Keep the piece from now on: after the body is read, reclaiming it would cancel more than the reading."""
        if self._piece is not None:
            self._piece.keep()

    def release(self) -> None:
        """Release the piece."""
        if self._piece is not None:
            self._admission.release(self._piece)
            self._piece = None


class _Cancelling:
    """Cancels the work of a request, now or as soon as it has begun."""

    def __init__(self) -> None:
        self._cancel: Callable[[], object] = lambda: None

    def begin(self, cancel: Callable[[], object]) -> None:
        """Set the function that cancels the work."""
        self._cancel = cancel

    def __call__(self) -> None:
        """Cancel the work."""
        self._cancel()
