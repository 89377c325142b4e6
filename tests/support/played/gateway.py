"""A simulated gateway: answers `ping` and `sync` for the records that the test gives it, and reports as it is told."""

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
import nats
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from protocol import subjects
from protocol.records import ClientRecord
from protocol.reports import Digest, GatewayPong, Removal, Report, SyncPage, SyncRequest

TIMEOUT_SECONDS = 5
PAGE_RECORDS = 100


class FakeGateway:
    """A gateway. `records` is what it holds, `number` its last report; both are the test's to bend."""

    def __init__(self, gateway_id: str, client: NatsClient) -> None:
        self.gateway_id = gateway_id
        self.records: dict[str, ClientRecord] = {}
        self.number = 0
        self.syncs = 0
        self.pings = 0
        self.mute = False
        self._client = client

    async def serve(self) -> None:
        """Answer the registry."""
        for op, answer in (("ping", self._pong), ("sync", self._page)):
            await self._client.subscribe(subjects.gateway(self.gateway_id, op), cb=answer)
        await self._client.subscribe("$SRV.PING.agentbridge-gateway", cb=self._found)
        await self._client.flush()

    async def vanish(self) -> None:
        """Be gone as a killed process is."""
        await self._client.close()

    def hold(self, *records: ClientRecord) -> list[ClientRecord]:
        """Hold records without reporting them, and return them."""
        mine = [msgspec.structs.replace(record, gateway_id=self.gateway_id) for record in records]
        self.records |= {subjects.client_key(record.tenant, record.client_id): record for record in mine}
        return mine

    async def connect(self, *records: ClientRecord) -> bytes:
        """Take on sessions, or update them, and report that; return the registry's answer."""
        return await self.report(self.number + 1, self.hold(*records))

    async def disconnect(self, *addresses: tuple[str, str], reason: str = "closed") -> bytes:
        """End sessions and report that; return the registry's answer."""
        for address in addresses:
            del self.records[subjects.client_key(*address)]
        return await self.report(self.number + 1, removals=[Removal(*address, reason) for address in addresses])

    async def report(
        self, number: int, records: Iterable[ClientRecord] = (), removals: Iterable[Removal] = ()
    ) -> bytes:
        """Send a report, which is the last one from then on; return the registry's answer."""
        self.number = number
        body = msgspec.json.encode(Report(self.gateway_id, number, list(records), list(removals)))
        return await self.send(body)

    async def send(self, body: bytes) -> bytes:
        """Send what may or may not be a report; return the registry's answer."""
        return (await self._client.request(subjects.REGISTRY_REPORT, body, timeout=TIMEOUT_SECONDS)).data

    def digest(self) -> str:
        """Return the digest of what it holds."""
        digest = Digest()
        for key, record in self.records.items():
            digest.toggle(key, record.revision)
        return str(digest)

    async def _pong(self, msg: Msg) -> None:
        self.pings += 1
        if not self.mute:
            pong = GatewayPong(self.gateway_id, self.number, len(self.records), self.digest())
            await msg.respond(msgspec.json.encode(pong))

    async def _page(self, msg: Msg) -> None:
        if self.mute:
            return
        after = msgspec.json.decode(msg.data, type=SyncRequest).after
        self.syncs += not after
        keys = [key for key in sorted(self.records) if key > after]
        page = [self.records[key] for key in keys[:PAGE_RECORDS]]
        more = keys[PAGE_RECORDS - 1] if len(keys) > PAGE_RECORDS else None
        await msg.respond(msgspec.json.encode(SyncPage(self.number, page, more)))

    async def _found(self, msg: Msg) -> None:
        if not self.mute:
            service = {"name": "agentbridge-gateway", "metadata": {"gatewayId": self.gateway_id}}
            await msg.respond(msgspec.json.encode(service))


@contextlib.asynccontextmanager
async def fake_gateway(url: str, gateway_id: str = "gw-1", **options: Any) -> AsyncIterator[FakeGateway]:
    """Run a simulated gateway on a connection of its own, whose `options` these are."""
    client = await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0, **options)
    try:
        gateway = FakeGateway(gateway_id, client)
        await gateway.serve()
        yield gateway
    finally:
        if not client.is_closed:
            await client.close()
