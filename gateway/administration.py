"""What the registry and administrators ask of one gateway: `ping`, `sync`, `disconnect`."""

import asyncio
import logging

import msgspec
from nats.aio.msg import Msg

from gateway.reports import Reporter
from gateway.sessions import Sessions
from protocol import codec, subjects
from protocol.access import require, require_admin
from protocol.errors import ClientNotFound, CloseCode
from protocol.reports import DisconnectRequest, DisconnectResponse, EndReason, SyncRequest
from protocol.runtime.auth import Verifier, token_of
from protocol.runtime.nats import Connection
from protocol.runtime.responder import Counters, Responder

SERVICE = "agentbridge-gateway"

log = logging.getLogger(__name__)
_sync_decoder = msgspec.json.Decoder(SyncRequest)
_disconnect_decoder = msgspec.json.Decoder(DisconnectRequest)


class Administration:
    """The fixed endpoints of a gateway."""

    def __init__(self, sessions: Sessions, reporter: Reporter, verifier: Verifier, counters: Counters) -> None:
        self._sessions = sessions
        self._reporter = reporter
        self._verifier = verifier
        self._counters = counters

    async def serve(self, connection: Connection, tasks: asyncio.TaskGroup) -> Responder:
        """Subscribe to this gateway's subjects and announce it."""
        ident = self._sessions.gateway_id
        responder = Responder(connection, tasks, SERVICE, {"gatewayId": ident}, ident)
        await responder.endpoint("ping", subjects.gateway(ident, "ping"), self.ping, counters=self._counters)
        await responder.endpoint("sync", subjects.gateway(ident, "sync"), self.sync)
        await responder.endpoint("disconnect", subjects.gateway(ident, "disconnect"), self.disconnect)
        await responder.announce()
        return responder

    async def ping(self, _: Msg) -> bytes:
        """Say that this gateway lives, and what it holds."""
        return codec.encode(self._reporter.pong())

    async def sync(self, msg: Msg) -> bytes:
        """Return one page of the records that were reported."""
        request = codec.decode(_sync_decoder, msg.data or b"{}")
        return codec.encode(self._reporter.page(self._sessions, request.after))

    async def disconnect(self, msg: Msg) -> bytes:
        """End a session for an administrator. Raises `ClientNotFound` where it is not here or not theirs to see."""
        request = codec.decode(_disconnect_decoder, msg.data)
        principal = await self._verifier.verify(token_of(msg))
        require_admin(principal)
        session = self._sessions.find(request.tenant, request.client_id)
        if session is None:
            raise ClientNotFound
        require(principal, session.core.view)
        log.info("client %s is disconnected by %s", request.client_id, principal.sub)
        session.close(CloseCode.POLICY, "disconnected by an administrator", EndReason.ADMINISTRATOR)
        return codec.encode(DisconnectResponse(disconnected=True))
