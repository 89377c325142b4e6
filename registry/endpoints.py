"""What a registry answers: reports of gateways, questions of its peers, and `list`, `find`, `get` for agents.

An agent's answers are what its token may see, and never longer than a message may be: `after` leads to the next page.
"""

from collections.abc import Awaitable, Callable, Iterable

import msgspec
from nats.aio.msg import Msg

from protocol import codec, subjects
from protocol.access import Principal, may, require_agent, view_of
from protocol.discovery import MAX_PAGE, Client, Query, offering, select
from protocol.errors import ClientNotFound
from protocol.reports import Report
from protocol.runtime.auth import Verifier, token_of
from protocol.runtime.mirror import Mirror
from protocol.runtime.responder import Responder
from registry.hearing import Hearing
from registry.store import Behind, Store
from registry.sync import Syncs
from registry.watch import Watch

QUEUE = "registry"
MAX_PAGE_BYTES = 512 * 1024


class _Find(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    target: str
    action: str | None = None
    after: str = ""


class _Get(msgspec.Struct, frozen=True, rename="camel"):
    client_id: str


class _Clients(msgspec.Struct, frozen=True, omit_defaults=True):
    clients: list[msgspec.Raw]
    after: str | None = None


_reports = msgspec.json.Decoder(Report)
_queries = msgspec.json.Decoder(Query)
_finds = msgspec.json.Decoder(_Find)
_gets = msgspec.json.Decoder(_Get)
_Answer = Callable[[Principal, str, bytes], bytes]


class Endpoints:
    """Answers requests from the mirror and the store."""

    def __init__(
        self, mirror: Mirror, store: Store, syncs: Syncs, watch: Watch, hearing: Hearing, verifier: Verifier
    ) -> None:
        self._mirror = mirror
        self._store = store
        self._syncs = syncs
        self._watch = watch
        self._hearing = hearing
        self._verifier = verifier

    async def serve(self, responder: Responder) -> None:
        """Subscribe and announce everything."""
        await responder.endpoint("report", subjects.REGISTRY_REPORT, self._report, queue=QUEUE)
        await responder.endpoint("peer-heard", subjects.REGISTRY_PEER_HEARD, self._hearing.answer)
        for name, answer in (("list", self._list), ("find", self._find), ("get", self._get)):
            await responder.endpoint(name, subjects.registry("*", name), self._for_agents(answer), queue=QUEUE)
        await responder.announce()

    async def _report(self, msg: Msg) -> bytes:
        report = codec.decode(_reports, msg.data)
        try:
            ack = await self._store.apply(report)
        except Behind:
            self._syncs.begin(report.gateway_id)
            raise
        finally:
            self._watch.heard(report.gateway_id)
        return codec.encode(ack)

    def _for_agents(self, answer: _Answer) -> Callable[[Msg], Awaitable[bytes]]:
        """Return an endpoint for agents; that the tenant is the token's own is part of what `may()` checks."""

        async def serve(msg: Msg) -> bytes:
            principal = await self._verifier.verify(token_of(msg))
            require_agent(principal)
            tenant, _ = subjects.parse_registry(msg.subject)
            return answer(principal, tenant, msg.data or b"{}")

        return serve

    def _list(self, principal: Principal, tenant: str, data: bytes) -> bytes:
        query = codec.decode(_queries, data)
        limit = query.limit or MAX_PAGE
        page = select(self._mirror.clients(tenant), principal, msgspec.structs.replace(query, limit=limit))
        return _encode(page.clients, page.after)

    def _find(self, principal: Principal, tenant: str, data: bytes) -> bytes:
        wanted = codec.decode(_finds, data)
        found = offering(self._mirror.clients(tenant).values(), principal, wanted.target, wanted.action)
        following = sorted((each for each in found if _id(each) > wanted.after), key=_id)
        return _encode(following, None)

    def _get(self, principal: Principal, tenant: str, data: bytes) -> bytes:
        client = self._mirror.get(tenant, codec.decode(_gets, data).client_id)
        if client is None or not may(principal, view_of(client.record)):
            raise ClientNotFound
        return codec.encode(client.record)


def _encode(clients: Iterable[Client], after: str | None) -> bytes:
    """Return as many records as fit into a message; `after` is where the next page begins if all of them do."""
    records: list[msgspec.Raw] = []
    size, last = 0, None
    for client in clients:
        record = codec.encode(client.record)
        size += len(record) + 1
        if records and size > MAX_PAGE_BYTES:
            return codec.encode(_Clients(records, last))
        records.append(msgspec.Raw(record))
        last = _id(client)
    return codec.encode(_Clients(records, after))


def _id(client: Client) -> str:
    return client.record.client_id
