"""The shell around one agent's socket: it performs the core's effects on the WebSocket and starts the commands.

A frame or an answer is handled without yielding to the event loop, so that effects keep the core's order.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any, assert_never

from agent_api.commands.gather import Gathered
from agent_api.commands.progress_buffer import size_of
from agent_api.context import SocketContext
from agent_api.http.connections import COMMAND_SECONDS
from agent_api.http.server import PEER_SECONDS
from agent_api.socket import frames
from agent_api.socket.dialect import AgentDialect
from agent_api.socket.effects import (
    AgentEffect,
    CloseAgent,
    LeaveStream,
    OfferToAgent,
    OpenStream,
    OrderInFlight,
    PingAgent,
    SendToAgent,
    StartOrder,
    StopOrder,
    VerifyToken,
)
from agent_api.socket.session import AgentSession, AgentState
from agent_api.socket.streams import AgentStreams
from protocol.access import require_agent
from protocol.errors import BridgeError, CloseCode, Internal
from protocol.frames import AuthFrame
from protocol.messages import CommandResponse, ProgressMessage
from protocol.runtime import logs
from protocol.runtime.expiry import Expiry
from protocol.runtime.tokens import require_same_identity
from protocol.runtime.websocket.connection import BoundedSocket
from protocol.runtime.websocket.handshake import close_reason
from protocol.shares import Piece

CONGESTED_AT = 4  # a quarter of the send buffer: above it the agent counts as congested
UNREAD_SECONDS = PEER_SECONDS

log = logging.getLogger(__name__)


class LiveSocket:
    """An agent's socket, its running commands, and its token with the timer for its expiry."""

    def __init__(
        self,
        core: AgentSession,
        socket: BoundedSocket,
        dialect: AgentDialect,
        token: str | None,
        context: SocketContext,
    ) -> None:
        self.core = core
        self._socket = socket
        self._dialect = dialect
        self._token = token
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._running: dict[OrderInFlight, asyncio.Task[None]] = {}
        self._streams = AgentStreams(socket, dialect, context)
        self._expiry = Expiry()
        self._expiry.watch(core.principal.expires_at, self._token_ended)

    def begin(self) -> None:
        """Handle the frames that this dialect sends on the agent's behalf, such as a question for all capabilities."""
        for frame in self._dialect.opening():
            self.perform(self.core.take(frame, 0, self._loop.time()))

    def receive(self, data: bytes, *, text: bool) -> None:
        """Handle one message. A bad one is answered with an `error` frame, and the connection goes on."""
        if self.core.state is AgentState.CLOSED:
            return
        frame, ident = None, None
        now = self._loop.time()
        try:
            frame = self._dialect.decode(data, text=text)
            ident = getattr(frame, "id", None)
            effects = self.core.take(frame, len(data), now)
        except BridgeError as exc:
            effects = self.core.refuse(exc, ident or self._dialect.identify(data), now)
            if frame is None or isinstance(frame, frames.AgentCommandFrame):
                self._context.sender.audit.refused(exc, self.core.principal)
        except Exception:
            log.exception("an agent's frame failed")
            effects = self.core.refuse(Internal("the agent API failed; its log says why"), ident, now)
        self.perform(effects)

    def perform(self, effects: Iterable[AgentEffect]) -> None:
        """Perform the core's effects, in order and without yielding."""
        for effect in effects:
            match effect:
                case SendToAgent() | OfferToAgent():
                    self._tell(effect)
                case StartOrder(command=command):
                    self._start(command)
                case StopOrder(command=command):
                    self._stop(command)
                case OpenStream(stream=stream):
                    self._streams.open(stream, self)
                case LeaveStream(stream=stream):
                    self._streams.leave(stream)
                case VerifyToken(frame=frame):
                    self._context.tasks.create_task(self._refresh(frame), name="refresh an agent's token")
                case PingAgent():
                    self._socket.send_ping(self._heard)
                case CloseAgent(code=code, reason=reason):
                    self._socket.close_soon(code, close_reason(reason))
                case _:
                    assert_never(effect)

    def tick(self) -> None:
        """Ping a silent agent, and cut off one that does not read. Called once a second."""
        self._socket.check_reading(UNREAD_SECONDS)
        self.perform(self.core.tick(self._loop.time()))

    def drain(self) -> None:
        """Take no more commands, and close when the running ones have their responses."""
        self.perform(self.core.drain())

    def refuse(self, error: BridgeError) -> None:
        """Close, because the agent is no longer admitted."""
        self.perform(self.core.close(CloseCode.REFUSED, error.message))

    def give_up(self) -> None:
        """Answer all running commands `cancelled`, and close now."""
        self.perform(self.core.give_up(self._loop.time()))

    def end(self) -> None:
        """Note that the connection has ended."""
        self._expiry.stop()
        self.perform(self.core.end())

    # --- commands ---

    def _start(self, command: OrderInFlight) -> None:
        principal = self.core.principal
        try:
            piece = self._context.admission.admit((principal.tenant, principal.sub), command.size)
        except BridgeError as exc:
            order = command.order
            self._context.sender.audit.refused(exc, principal, order.command, order.client_id)
            self.perform(self.core.failed(command, exc, self._loop.time()))
            return
        self._context.turns.charge(COMMAND_SECONDS)
        task = self._context.tasks.create_task(self._execute(command), name=f"command {command.order.request_id}")
        self._running[command] = task
        task.add_done_callback(lambda _: self._over(command, piece))

    def _stop(self, command: OrderInFlight) -> None:
        task = self._running.get(command)
        if task is not None:
            task.cancel()

    def _over(self, command: OrderInFlight, piece: Piece) -> None:
        """Release a command's place. It is a callback, because a task that is cancelled before it starts never runs."""
        del self._running[command]
        self._context.admission.release(piece)

    async def _execute(self, command: OrderInFlight) -> None:
        try:
            self.perform(await self._outcome(command))
        except Exception as exc:
            # An error that leaves the task would end the process.
            self._fail(command, exc)

    async def _outcome(self, command: OrderInFlight) -> list[AgentEffect]:
        try:
            outcome = await self._send(command)
        except BridgeError as exc:
            return self.core.failed(command, exc, self._loop.time())
        return self.core.answered(command, outcome, self._loop.time())

    def _fail(self, command: OrderInFlight, exc: Exception) -> None:
        """Log a fault of ours, and answer the command with `internal`."""
        with logs.about(command.order.client_id, command.order.request_id):
            log.error("a command failed", exc_info=exc)
        error = Internal("the command failed; the log of the process says why")
        self.perform(self.core.failed(command, error, self._loop.time()))

    def _send(self, command: OrderInFlight) -> Coroutine[Any, Any, CommandResponse | Gathered]:
        heard = partial(self._progressed, command) if command.wants_progress else None
        return self._context.sender.send(command.order, self.core.principal, self._token, heard)

    def _progressed(self, command: OrderInFlight, client_id: str, message: ProgressMessage) -> None:
        self.perform(self.core.progressed(command, client_id, message, congested=self._congested(message)))

    def _congested(self, message: ProgressMessage) -> bool:
        """Tell whether the agent reads too slowly for a progress message."""
        unread = self._socket.unread_bytes
        return unread > self._socket.send_buffer_bytes // CONGESTED_AT or not self._socket.has_room(size_of(message))

    def _tell(self, effect: SendToAgent | OfferToAgent) -> None:
        data = self._dialect.encode(effect.frame)
        if data is None:
            return
        if isinstance(effect, SendToAgent) or self._socket.has_room(len(data)):
            self._socket.send_text(data)

    # --- the token ---

    async def _refresh(self, frame: AuthFrame) -> None:
        """Verify a fresh token and go on with it. If it is refused, the old one stays in force until it expires."""
        try:
            principal = await self._context.verifier.verify(frame.token)
            require_agent(principal)
            require_same_identity(self.core.principal, principal)
        except BridgeError as exc:
            self.perform(self.core.refused(exc, frame.id, self._loop.time()))
        except Exception:
            log.exception("a token could not be refreshed")
            self.perform(self.core.close(CloseCode.INTERNAL, "the agent API failed"))
        else:
            self.perform(self.core.refreshed(principal, frame.id))
            self._go_on(frame.token)

    def _go_on(self, token: str) -> None:
        if self.core.state is AgentState.CLOSED:
            # A timer would keep the closed socket until the token expires.
            return
        self._token = token
        self._streams.change_principal(self.core.principal)
        self._expiry.watch(self.core.principal.expires_at, self._token_ended)

    def _token_ended(self) -> None:
        self.perform(self.core.close(CloseCode.REFUSED, "token expired"))

    def _heard(self) -> None:
        self.core.heard(self._loop.time())
