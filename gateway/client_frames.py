"""Handles clients' frames: decodes each, passes it to the session core, performs the effects. No exception escapes."""

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import assert_never

from msgspec import Raw

from gateway.capabilities.changes import merged
from gateway.capabilities.contracts import Contract, Contracts
from gateway.component_states import STATE_CHANGED, ComponentStates
from gateway.dialects.dialect import CapabilityChange, Farewell, MessageIds, Reply, Said, Switch, Wish
from gateway.events import Events
from gateway.limits.client_rates import ClientRates, TooManyBytes
from gateway.registrations import Registration
from gateway.sessions.core.session import SessionState
from gateway.sessions.live import LiveSession
from protocol.access import APP
from protocol.errors import BridgeError, CloseCode, Internal, Overloaded, PayloadTooLarge, PermissionDenied, RateLimited
from protocol.frames import (
    AllowFrame,
    AuthFrame,
    CapabilityFrame,
    EventFrame,
    MetadataFrame,
    PingFrame,
    PongFrame,
    ProgressFrame,
    ResponseFrame,
    StopFrame,
    UnknownFrame,
)
from protocol.reports import EndReason
from protocol.runtime import logs
from protocol.runtime.connections.turns import Turns
from protocol.runtime.log_throttle import LogBudget
from protocol.runtime.tokens import Verifier, require_same_identity

LINES_A_SECOND = 50  # of registrations
MAX_FRAMES_PER_MESSAGE = 64  # they are handled in one turn
MAX_PAUSE_SECONDS = 1.0  # far below the time in which a pong must come

log = logging.getLogger(__name__)


class ClientFrames:
    """Handles the frames of all clients."""

    def __init__(
        self,
        contracts: Contracts,
        events: Events,
        rates: ClientRates,
        verifier: Verifier,
        tasks: asyncio.TaskGroup,
        turns: Turns,
    ) -> None:
        self._contracts = contracts
        self._events = events
        self._rates = rates
        self._verifier = verifier
        self._tasks = tasks
        self._turns = turns
        self._loop = asyncio.get_running_loop()
        self._states = ComponentStates(rates, self._replace)
        self._lines = LogBudget(LINES_A_SECOND, self._loop.time)

    def take(self, session: LiveSession, data: bytes, *, text: bool) -> None:
        """Handle one message of a client. A bad one is answered with an `error` frame, and the connection goes on.

        Frames after the end of the session, while its socket closes, are dropped, because they would bring the record
        back.
        """
        if session.core.state is SessionState.ENDED:
            return
        if session.registration is not None:
            session.registration.held_back.append(partial(self.take, session, data, text=text))
            return
        try:
            frames = session.dialect.decode(data, text=text)
            if len(frames) > MAX_FRAMES_PER_MESSAGE:
                raise PayloadTooLarge(f"a message may hold {MAX_FRAMES_PER_MESSAGE} frames")
        except Exception as exc:
            self._refuse(session, exc, _ids_of(session, data))
            return
        session.core.heard(self._loop.time())
        self._handle(session, frames, len(data))

    def _handle(self, session: LiveSession, frames: Sequence[Said], message_bytes: int) -> None:
        """Handle the frames of a message in order, until one ends the session."""
        for number, frame in enumerate(frames):
            if session.registration is not None:
                session.registration.held_back.append(partial(self._handle, session, frames[number:], message_bytes))
                return
            try:
                self._act(session, frame, message_bytes)
            except RateLimited as exc:
                self._refuse_above_rate(session, exc, frame)
            except Exception as exc:
                self._refuse(session, exc, MessageIds(getattr(frame, "id", None)))
            if session.end_reason is not None:
                return

    def _act(self, session: LiveSession, frame: Said, size: int) -> None:  # noqa: C901  one case for each frame
        core, now = session.core, self._loop.time()
        match frame:
            case ResponseFrame():
                session.perform(core.response(frame, now))
            case CapabilityFrame():
                self._rates.registrations.keep(core.view, size, now)
                self._register(session, frame)
            case MetadataFrame():
                self._rates.registrations.keep(core.view, size, now)
                session.perform(core.describe(frame.metadata, frame.id))
            case EventFrame():
                self._rates.events.keep(core.view, size, now)
                if frame.event == STATE_CHANGED:
                    self._states.take(session, frame)
                self._events.publish(session, frame)
            case StopFrame() | AllowFrame():
                session.perform(core.user_wishes(frame, now))
            case UnknownFrame():
                session.perform(core.unknown(frame, now))
            case AuthFrame():
                self._start_refresh(session, frame)
            case PingFrame():
                session.send(PongFrame())
            case ProgressFrame():
                self._rates.progress.keep(core.view, size, now)
                session.perform(core.progress(frame, now))
            case _:
                self._obey(session, frame, size)

    def _obey(self, session: LiveSession, wish: Wish, size: int) -> None:
        """Perform a dialect's own requests, which are not frames of the client."""
        match wish:
            case Reply(data=data):
                session.socket.send_text(data)
            case CapabilityChange(capabilities=changes):
                registered = session.core.contract.capabilities.raw
                written = size + len(memoryview(registered))
                self._rates.registrations.keep(session.core.view, written, self._loop.time())
                self._replace(session, merged(registered, changes))
            case Switch(make=make, data=data):
                session.switch(make(time.time))
                self.take(session, data, text=True)
            case Farewell():
                session.leave(wish)
            case _:
                assert_never(wish)

    def _register(self, session: LiveSession, frame: CapabilityFrame) -> None:
        """Replace the client's capability list: at once, or in turns if the list is new and large.

        A list with an id and a timestamp means that the client speaks the protocol document's form.
        """
        if frame.timestamp is not None and frame.id is not None and session.dialect.documented is not None:
            session.switch(session.dialect.documented(frame, time.time))
        share = (session.core.principal.tenant, session.core.principal.sub)
        steps = self._contracts.steps(frame.capabilities, share, self._loop.time())
        registration = Registration(share, steps, session.socket, partial(self._registered, session, frame))
        if registration.begin(self._turns):
            session.registration = registration
        else:
            self._take_offer(session, frame, registration.contract())

    def _replace(self, session: LiveSession, capabilities: list[Raw]) -> None:
        self._register(session, CapabilityFrame(capabilities))

    def _registered(self, session: LiveSession, frame: CapabilityFrame, registration: Registration) -> None:
        """End a registration that took turns, then handle the frames that waited for it."""
        session.registration = None
        if session.core.state is SessionState.ENDED:
            return
        if session.is_slowed_down:
            session.socket.hold()  # the registration has resumed the socket, but it must stay paused for its bytes
        try:
            self._take_offer(session, frame, registration.contract())
        except Exception as exc:
            self._refuse(session, exc, MessageIds(frame.id))
        for handle in registration.held_back:
            handle()

    def _take_offer(self, session: LiveSession, frame: CapabilityFrame, contract: Contract) -> None:
        """Register a client's list. Log it: some a second, with the number of the others."""
        session.perform(session.core.register(contract, frame.app, frame.metadata, frame.id))
        if frame.wants is not None:
            session.core.want_agents("agents" in frame.wants, time.time() - self._loop.time())
        if self._lines.admits():
            if count := self._lines.take_kept_back():
                log.info("%d lines about registrations were left out", count)
            with logs.about(session.core.client_id):
                log.info("registered %d capabilities", len(contract.capabilities.offers))

    def _refuse_above_rate(self, session: LiveSession, error: RateLimited, frame: Said) -> None:
        """Refuse a frame above its rate, or drop progress. If it is above the byte rate, pause the socket."""
        if isinstance(error, TooManyBytes) and not session.is_slowed_down:
            session.is_slowed_down = True
            session.socket.hold()
            self._loop.call_later(min(error.retry_after_ms / 1000, MAX_PAUSE_SECONDS), self._read_on, session)
        if not isinstance(frame, ProgressFrame):
            self._refuse(session, error, MessageIds(getattr(frame, "id", None)))

    def _read_on(self, session: LiveSession) -> None:
        """Resume a paused socket. Its client does not count as silent, because we did not read meanwhile."""
        session.is_slowed_down = False
        if session.core.state is SessionState.ENDED:
            return
        session.core.heard(self._loop.time())
        if session.registration is None:
            session.socket.go_on()

    def _refuse(self, session: LiveSession, error: Exception, ids: MessageIds) -> None:
        """Send the client an error for a message, and fail the commands that it would have answered.

        A fault of ours is logged, and called `internal`.
        """
        if not isinstance(error, BridgeError):
            with logs.about(session.core.client_id):
                log.error("a client's frame failed", exc_info=error)
            error = Internal("the gateway failed")
        try:
            session.perform(session.core.refuse_frame(error, self._loop.time(), ids.id, ids.answers))
        except Exception:  # the dialect cannot encode even the error
            log.exception("a refusal could not be sent")
            session.end_reason = session.end_reason or EndReason.GATEWAY_FAILED
            session.socket.close_soon(CloseCode.INTERNAL, "the gateway failed")

    def _start_refresh(self, session: LiveSession, frame: AuthFrame) -> None:
        """Verify a fresh token in a task, because that may fetch the key set. One at a time, or they could pile up."""
        if session.refreshing:
            raise Overloaded("the former token is still being verified; send this one after its ack")
        session.refreshing = True
        self._tasks.create_task(self._refresh(session, frame), name="refresh a token")

    async def _refresh(self, session: LiveSession, frame: AuthFrame) -> None:
        """Verify a fresh token and go on with it. If it is refused, the old one stays in force until it expires."""
        try:
            principal = await self._verifier.verify(frame.token)
            if principal.role != APP and not self._verifier.off:
                raise PermissionDenied("a refreshed token must keep sub, tenant and role")
            require_same_identity(session.core.principal, principal)
            if session.core.state is SessionState.ENDED:  # a timer would keep the session until the token expires
                return
            session.perform(session.core.refresh(principal, frame.id))
            session.watch_expiry()
        except BridgeError as exc:
            session.perform(session.core.refuse_frame(exc, self._loop.time(), frame.id))
        except Exception:
            log.exception("a token could not be refreshed")
            session.close(CloseCode.INTERNAL, "the gateway failed", EndReason.GATEWAY_FAILED)
        finally:
            session.refreshing = False


def _ids_of(session: LiveSession, data: bytes) -> MessageIds:
    """Return the ids in a refused message, or none if the dialect fails to read them, too."""
    try:
        return session.dialect.identify(data)
    except Exception:  # a dialect's fault must not stop the socket; the error has no id then
        with logs.about(session.core.client_id):
            log.exception("a refused message could not be identified")
        return MessageIds()
