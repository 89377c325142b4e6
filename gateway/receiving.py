"""What a client sends: each frame decoded, given to the session core, and what follows performed; nothing escapes."""

import asyncio
import logging
from typing import assert_never

from gateway.contracts import Contracts
from gateway.dialects import native
from gateway.events import Events
from gateway.session import State
from gateway.sessions import LiveSession
from protocol.access import APP
from protocol.errors import BridgeError, CloseCode, Internal, Overloaded, PermissionDenied
from protocol.frames import (
    AuthFrame,
    CapabilityFrame,
    ClientFrame,
    EventFrame,
    MetadataFrame,
    PingFrame,
    PongFrame,
    ProgressFrame,
    ResponseFrame,
)
from protocol.reports import EndReason
from protocol.runtime import logs
from protocol.runtime.auth import Verifier, require_same_identity

log = logging.getLogger(__name__)


class Receiving:
    """Handles the frames of all clients."""

    def __init__(self, contracts: Contracts, events: Events, verifier: Verifier, tasks: asyncio.TaskGroup) -> None:
        self._contracts = contracts
        self._events = events
        self._verifier = verifier
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()

    def take(self, session: LiveSession, data: bytes, *, text: bool) -> None:
        """Handle one message of a client; a bad one gets an `error` frame and the connection goes on.

        What comes after the end of the session, while its socket closes, is dropped: it would bring the record back.
        """
        if session.core.state is State.ENDED:
            return
        ident: str | None = None
        try:
            frame = native.decode(data, text=text)
            ident = getattr(frame, "id", None)
            self._act(session, frame)
        except BridgeError as exc:
            session.perform(session.core.refuse_frame(exc, self._loop.time(), ident or native.identify(data)))
        except Exception:
            with logs.about(session.core.client_id):
                log.exception("a frame of the client's failed")
            session.perform(session.core.refuse_frame(Internal("the gateway failed"), self._loop.time(), ident))

    def _act(self, session: LiveSession, frame: ClientFrame) -> None:
        core, now = session.core, self._loop.time()
        match frame:
            case ResponseFrame():
                session.perform(core.response(frame, now))
                return
            case CapabilityFrame():
                owner = (core.principal.tenant, core.principal.sub)
                contract = self._contracts.read(frame.capabilities, owner, now)
                session.perform(core.register(contract, frame.app, frame.metadata, frame.id))
            case MetadataFrame():
                session.perform(core.describe(frame.metadata, frame.id))
            case EventFrame():
                self._events.publish(session, frame)
            case AuthFrame():
                self._start_refresh(session, frame)
            case PingFrame():
                session.send(PongFrame())
            case ProgressFrame():
                session.perform(core.progress(frame, now))
            case _:
                assert_never(frame)
        core.heard(now)

    def _start_refresh(self, session: LiveSession, frame: AuthFrame) -> None:
        """Verify in a task, for the key set may have to be fetched: one at a time, or a client could pile them up."""
        if session.refreshing:
            raise Overloaded("the former token is still being verified; send this one after its ack")
        session.refreshing = True
        self._tasks.create_task(self._refresh(session, frame), name="refresh a token")

    async def _refresh(self, session: LiveSession, frame: AuthFrame) -> None:
        """Go on under a fresh token; one that is refused leaves the former, and its end, in force."""
        try:
            principal = await self._verifier.verify(frame.token)
            if principal.role != APP and not self._verifier.off:
                raise PermissionDenied("a refreshed token must keep sub, tenant and role")
            require_same_identity(session.core.principal, principal)
            if session.core.state is State.ENDED:  # its timer would keep the session for as long as the token
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
