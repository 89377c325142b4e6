"""The shell around one agent's socket: performs what the core decides, on the WebSocket and by the caller.

What reacts to a frame or an answer runs without yielding, so that effects reach the socket in the order in which the
core decided them.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any, assert_never

from agent_api.commands.gathering import Gathered
from agent_api.commands.held import size_of
from agent_api.http.server import PEER_SECONDS
from agent_api.socket import frames
from agent_api.socket.connection import AgentsSocket
from agent_api.socket.effects import (
    Close,
    Effect,
    InFlight,
    Leave,
    Mention,
    Open,
    Ping,
    Send,
    Start,
    Stop,
    Verify,
)
from agent_api.socket.session import AgentSession, State
from agent_api.socket.streams import Streams
from agent_api.socket.surroundings import Surroundings
from protocol.access import require_agent
from protocol.errors import BridgeError, CloseCode, Internal
from protocol.frames import AuthFrame
from protocol.messages import CommandResponse, ProgressMessage
from protocol.runtime import logs
from protocol.runtime.auth import require_same_identity
from protocol.runtime.expiry import Expiry
from protocol.runtime.handshake import close_reason

CONGESTED_AT = 4  # where this part of the bound is unread
UNREAD_SECONDS = PEER_SECONDS

log = logging.getLogger(__name__)


class LiveSocket:
    """An agent's socket with its commands under way, its token and the end of that."""

    def __init__(self, core: AgentSession, socket: AgentsSocket, token: str | None, around: Surroundings) -> None:
        self.core = core
        self._socket = socket
        self._token = token
        self._around = around
        self._loop = asyncio.get_running_loop()
        self._running: dict[InFlight, asyncio.Task[None]] = {}
        self._streams = Streams(socket, around)
        self._expiry = Expiry()
        self._expiry.watch(core.principal.expires_at, self._token_ended)

    def receive(self, data: bytes, *, text: bool) -> None:
        """Handle one message of the agent's; a bad one gets an `error` frame and the connection goes on."""
        if self.core.state is State.CLOSED:
            return
        frame, ident = None, None
        now = self._loop.time()
        try:
            frame = frames.decode(data, text=text)
            ident = getattr(frame, "id", None)
            effects = self.core.take(frame, len(data), now)
        except BridgeError as exc:
            effects = self.core.refuse(exc, ident or frames.identify(data), now)
            if frame is None or isinstance(frame, frames.CommandFrame):
                self._around.commands.refusals.refused(exc, self.core.principal)
        except Exception:
            log.exception("a frame of an agent's failed")
            effects = self.core.refuse(Internal("the agent API failed; its log says why"), ident, now)
        self.perform(effects)

    def perform(self, effects: Iterable[Effect]) -> None:
        """Do what the core has decided, in order and without yielding."""
        for effect in effects:
            match effect:
                case Send() | Mention():
                    self._tell(effect)
                case Start(command=command):
                    self._start(command)
                case Stop(command=command):
                    self._stop(command)
                case Open(stream=stream):
                    self._streams.open(stream, self)
                case Leave(stream=stream):
                    self._streams.leave(stream)
                case Verify(frame=frame):
                    self._around.tasks.create_task(self._refresh(frame), name="refresh an agent's token")
                case Ping():
                    self._socket.send_ping(self._heard)
                case Close(code=code, reason=reason):
                    self._socket.close_soon(code, close_reason(reason))
                case _:
                    assert_never(effect)

    def tick(self) -> None:
        """Look whether the agent still is there, and takes what is written to it."""
        self._socket.abort_where_unread(UNREAD_SECONDS)
        self.perform(self.core.tick(self._loop.time()))

    def drain(self) -> None:
        """Take no more commands, and close when those under way have their responses."""
        self.perform(self.core.drain())

    def give_up(self) -> None:
        """Close now; commands under way are cancelled, which the agent is told."""
        self.perform(self.core.give_up(self._loop.time()))

    def end(self) -> None:
        """Note that the connection is over."""
        self._expiry.stop()
        self.perform(self.core.end())

    # --- commands ---

    def _start(self, command: InFlight) -> None:
        try:
            self._around.intake.admit(command.size)
        except BridgeError as exc:
            order = command.order
            self._around.commands.refusals.refused(exc, self.core.principal, order.command, order.client_id)
            self.perform(self.core.failed(command, exc, self._loop.time()))
            return
        task = self._around.tasks.create_task(self._execute(command), name=f"command {command.order.request_id}")
        self._running[command] = task
        task.add_done_callback(lambda _: self._over(command))

    def _stop(self, command: InFlight) -> None:
        task = self._running.get(command)
        if task is not None:
            task.cancel()

    def _over(self, command: InFlight) -> None:
        """Do what must be done even for a task that was cancelled before it began."""
        del self._running[command]
        self._around.intake.release(command.size)

    async def _execute(self, command: InFlight) -> None:
        try:
            self.perform(await self._outcome(command))
        except Exception as exc:  # nothing may leave a command's task, for that would end the process
            self._fail(command, exc)

    async def _outcome(self, command: InFlight) -> list[Effect]:
        try:
            outcome = await self._send(command)
        except BridgeError as exc:
            return self.core.failed(command, exc, self._loop.time())
        return self.core.answered(command, outcome, self._loop.time())

    def _fail(self, command: InFlight, exc: Exception) -> None:
        """Tell of a fault of ours."""
        with logs.about(command.order.client_id, command.order.request_id):
            log.error("a command failed", exc_info=exc)
        error = Internal("the command failed; the log of the process says why")
        self.perform(self.core.failed(command, error, self._loop.time()))

    def _send(self, command: InFlight) -> Coroutine[Any, Any, CommandResponse | Gathered]:
        heard = partial(self._progressed, command) if command.wants_progress else None
        return self._around.commands.send(command.order, self.core.principal, self._token, heard)

    def _progressed(self, command: InFlight, client_id: str, message: ProgressMessage) -> None:
        self.perform(self.core.progressed(command, client_id, message, congested=self._congested(message)))

    def _congested(self, message: ProgressMessage) -> bool:
        """Tell whether the agent reads so slowly that it is to be spared this."""
        unread = self._socket.unread_bytes
        return unread > self._socket.send_buffer_bytes // CONGESTED_AT or not self._fits(size_of(message), unread)

    def _tell(self, effect: Send | Mention) -> None:
        data = frames.encode(effect.frame)
        if isinstance(effect, Send) or self._fits(len(data), self._socket.unread_bytes):
            self._socket.send_text(data)

    def _fits(self, size: int, unread: int) -> bool:
        """Tell whether there is room for so much; to an agent that has read everything anything may be sent."""
        return not unread or unread + size <= self._socket.send_buffer_bytes

    # --- the token ---

    async def _refresh(self, frame: AuthFrame) -> None:
        """Go on under a fresh token; one that is refused leaves the former, and its end, in force."""
        try:
            principal = await self._around.verifier.verify(frame.token)
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
        if self.core.state is State.CLOSED:  # the timer would keep the socket for as long as the token
            return
        self._token = token
        self._streams.change_principal(self.core.principal)
        self._expiry.watch(self.core.principal.expires_at, self._token_ended)

    def _token_ended(self) -> None:
        self.perform(self.core.close(CloseCode.REFUSED, "token expired"))

    def _heard(self) -> None:
        self.core.heard(self._loop.time())
