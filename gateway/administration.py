"""Requests of the registry and of administrators to one gateway: `ping`, `sync`, `disconnect`."""

import asyncio
import logging

import msgspec
from nats.aio.msg import Msg

from gateway.reports import Reporter
from gateway.sessions.table import SessionTable
from protocol import codec, subjects
from protocol.access import require, require_admin
from protocol.errors import ClientNotFound, CloseCode
from protocol.reports import DisconnectRequest, DisconnectResponse, EndReason, GatewayPing, SyncRequest
from protocol.runtime.clock import SharedClock, wall_ms
from protocol.runtime.nats.connection import Connection
from protocol.runtime.nats.responder import Counters, Responder
from protocol.runtime.tokens import Verifier, token_of

SERVICE = "agentbridge-gateway"

log = logging.getLogger(__name__)
_ping_decoder = msgspec.json.Decoder(GatewayPing)
_sync_decoder = msgspec.json.Decoder(SyncRequest)
_disconnect_decoder = msgspec.json.Decoder(DisconnectRequest)


class Administration:
    """The fixed endpoints of a gateway."""

    def __init__(
        self, gateway_id: str, sessions: SessionTable, reporter: Reporter, verifier: Verifier, counters: Counters
    ) -> None:
        self._clock = SharedClock(asyncio.get_running_loop().time)
        self._gateway_id = gateway_id
        self._sessions = sessions
        self._reporter = reporter
        self._verifier = verifier
        self._counters = counters

    async def serve(self, connection: Connection, tasks: asyncio.TaskGroup) -> Responder:
        """Subscribe to this gateway's subjects and announce it."""
        self._clock = connection.clock
        ident = self._gateway_id
        responder = Responder(connection, tasks, SERVICE, {"gatewayId": ident}, ident)
        await responder.endpoint("ping", subjects.gateway(ident, "ping"), self.ping, counters=self._counters)
        await responder.endpoint("sync", subjects.gateway(ident, "sync"), self.sync)
        await responder.endpoint("disconnect", subjects.gateway(ident, "disconnect"), self.disconnect)
        await responder.announce()
        return responder

    async def ping(self, msg: Msg) -> bytes:
        """Answer with the number of sessions, the digest of the reported records, and this machine's time."""
        skew_ms = codec.decode(_ping_decoder, msg.data).skew_ms if msg.data else None
        if skew_ms is not None:
            self._clock.is_ahead_by(skew_ms)
        pong = msgspec.structs.replace(self._reporter.pong(), at_ms=wall_ms(), skew_ms=self._clock.skew_ms)
        return codec.encode(pong)

    async def sync(self, msg: Msg) -> bytes:
        """Return one page of the records that were reported."""
        request = codec.decode(_sync_decoder, msg.data or b"{}")
        return codec.encode(self._reporter.page(self._sessions, request.after))

    async def disconnect(self, msg: Msg) -> bytes:
        """End a session for an administrator. Raises `ClientNotFound` if it is not here, or hidden from the token."""
        request = codec.decode(_disconnect_decoder, msg.data)
        principal = await self._verifier.verify(token_of(msg))
        require_admin(principal)
        session = self._sessions.find(request.tenant, request.client_id)
        if session is None:
            raise ClientNotFound
        require(principal, session.core.view)
        log.info("client %s is disconnected by %s", request.client_id, principal.sub)
        session.close(CloseCode.POLICY, "disconnected by an administrator", EndReason.ADMINISTRATOR)
        if session.grace is not None:  # a detached session has no connection that could end it
            session.end_reason = EndReason.ADMINISTRATOR
            self._sessions.end(session, EndReason.ADMINISTRATOR)
        return codec.encode(DisconnectResponse(disconnected=True))
