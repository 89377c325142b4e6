"""Compares this agent API's clock with the deployment's, as gateways know it, every ten seconds."""

import asyncio
import contextlib
from collections import Counter

import msgspec
import nats.errors

from protocol import codec, subjects
from protocol.errors import BridgeError
from protocol.reports import GatewayPong
from protocol.runtime.clients.replica import ReplicaEntry
from protocol.runtime.clock import skew_of, wall_ms
from protocol.runtime.nats.connection import Connection

PERIOD_SECONDS = 10.0
FIRST_SECONDS = 1.0
PING_SECONDS = 1.0
ASKED = 3  # gateways per comparison; the middle one of their answers counts

_pongs = msgspec.json.Decoder(GatewayPong)


class ClockWatch:
    """Asks a few of the gateways that have clients. A listener of the mirror of clients."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._gateways: Counter[str] = Counter()

    def observe(self, _: str, before: ReplicaEntry | None, after: ReplicaEntry | None) -> None:
        """Note at which gateway a client is."""
        if after is not None and after.client is not None:
            self._gateways[after.client.record.gateway_id] += 1
        if before is not None and before.client is not None:
            gateway_id = before.client.record.gateway_id
            self._gateways[gateway_id] -= 1
            if self._gateways[gateway_id] <= 0:
                del self._gateways[gateway_id]

    async def run(self) -> None:
        """Compare for ever: soon after the first gateway is known, then every ten seconds."""
        while True:
            await asyncio.sleep(PERIOD_SECONDS if await self.compare() else FIRST_SECONDS)

    async def compare(self) -> bool:
        """Compare once; return whether a gateway has answered."""
        asked = [await self._skew(gateway_id) for gateway_id in list(self._gateways)[:ASKED]]
        known = sorted(skew for skew in asked if skew is not None)
        if known:
            self._connection.clock.is_ahead_by(known[len(known) // 2])
        return bool(known)

    async def _skew(self, gateway_id: str) -> int | None:
        """Return this machine's lead over the deployment's clock as a gateway reports it, or None without a report."""
        sent = wall_ms()
        with contextlib.suppress(BridgeError, nats.errors.Error, TimeoutError):  # try again at the next comparison
            reply = await self._connection.request(subjects.gateway(gateway_id, "ping"), b"", PING_SECONDS)
            pong = codec.decode(_pongs, reply.data)
            ahead = skew_of(pong.at_ms - pong.skew_ms if pong.at_ms else 0, sent, wall_ms())
            return None if ahead is None else -ahead
        return None
