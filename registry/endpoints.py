"""A registry's endpoints: reports of gateways, stores of tenants, questions of its peers and of agents.

Answers to an agent contain only clients that its token may see, and fit into a message. `after` asks for the next page.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

import msgspec
from nats.aio.msg import Msg

from protocol import codec, subjects
from protocol.access import Principal, may, require_admin, require_agent, view_of
from protocol.discovery import MAX_PAGE, Client, Query, offering, select
from protocol.errors import ClientNotFound, Unavailable
from protocol.ids import check_token
from protocol.reports import Report
from protocol.runtime.clients.mirror import Mirror
from protocol.runtime.nats.connection import Connection
from protocol.runtime.nats.responder import Responder
from protocol.runtime.streams.stores import StoreRequest, TenantStore
from protocol.runtime.tokens import Verifier
from protocol.subjects import ClientAddress
from registry.bucket.store import Behind, Store
from registry.gateways.monitor import GatewayMonitor
from registry.gateways.peers import Peers
from registry.gateways.sync import Syncs
from registry.question_subjects import QUEUE, QuestionSubjects
from registry.questions import Questions
from registry.stores.tenants import TenantStreams

MAX_PAGE_BYTES = 512 * 1024
WORK_AT_ONCE = 32
STORES_AT_ONCE = 4096  # a thousand tenants may ask at the start of the processes
AGENTS_AT_ONCE = 16_384  # far more than may wait for a turn, so that the shares decide about refusals


class _Find(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    target: str
    action: str | None = None
    after: str = ""


class _Get(msgspec.Struct, frozen=True, rename="camel"):
    client_id: str


class _ClientList(msgspec.Struct, frozen=True, omit_defaults=True):
    clients: list[msgspec.Raw]
    after: str | None = None


_reports = msgspec.json.Decoder(Report)
_store_requests = msgspec.json.Decoder(StoreRequest)
_queries = msgspec.json.Decoder(Query)
_finds = msgspec.json.Decoder(_Find)
_gets = msgspec.json.Decoder(_Get)
_Asked = TypeVar("_Asked", bound=msgspec.Struct)
_Work = Callable[[Principal, Msg], Awaitable[bytes]]
_Answer = Callable[[Principal, str, bytes], bytes]


class Endpoints:
    """Answers requests from the mirror and the store."""

    def __init__(
        self,
        mirror: Mirror,
        store: Store,
        syncs: Syncs,
        watch: GatewayMonitor,
        peers: Peers,
        verifier: Verifier,
        streams: TenantStreams,
    ) -> None:
        self._mirror = mirror
        self._store = store
        self._syncs = syncs
        self._watch = watch
        self._peers = peers
        self._verifier = verifier
        self._streams = streams
        self._clock = asyncio.get_running_loop().time

    async def serve(self, responder: Responder) -> None:
        """Subscribe to the requests of gateways and other registries, and announce the service."""
        await responder.endpoint("report", subjects.REGISTRY_REPORT, self._report, queue=QUEUE)
        await responder.endpoint(
            "stores", subjects.REGISTRY_STORES, self._make_store, queue=QUEUE, at_once=STORES_AT_ONCE
        )
        await responder.endpoint("peer-heard", subjects.REGISTRY_PEER_HEARD, self._peers.answer)
        await responder.announce()

    async def serve_agents(
        self, responder: Responder, asking: Connection, served: QuestionSubjects, more: Mapping[str, _Work]
    ) -> Questions:
        """Answer agents' questions over a second connection, so that no flood of them delays anything else.

        `more` are administrators' questions with slow answers, of which only a few run at once.
        """
        questions = Questions(self._verifier, served.dropped)
        handlers = {
            name: questions.taking(
                responder.accepting(
                    name,
                    subjects.registry("*", name),
                    self._for_agents(questions, served, answer),
                    queue=QUEUE,
                    at_once=AGENTS_AT_ONCE,
                    counters=questions.counters if name == "list" else None,
                    connection=asking,
                )
            )
            for name, answer in (("list", self._list), ("find", self._find), ("get", self._get))
        }
        handlers |= {
            name: questions.taking(
                responder.accepting(
                    name,
                    subjects.registry("*", name),
                    _worked_on(questions, served, work),
                    queue=QUEUE,
                    at_once=WORK_AT_ONCE,
                    connection=asking,
                )
            )
            for name, work in more.items()
        }
        await served.serve(handlers, questions.drops)
        return questions

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

    async def _make_store(self, msg: Msg) -> bytes:
        """Make or grow a store of a tenant. NATS's permissions let only our own processes ask."""
        asked = codec.decode(_store_requests, msg.data)
        if asked.tenant != subjects.STRANGERS:
            check_token(asked.tenant, "`tenant`")
        await self._streams.ensure(TenantStore(asked.store, asked.tenant))
        return b"{}"

    def _for_agents(
        self, questions: Questions, served: QuestionSubjects, answer: _Answer
    ) -> Callable[[Msg], Awaitable[bytes | None]]:
        """Return an endpoint for agents. `may()` checks that the tenant is the token's own."""

        async def serve(msg: Msg) -> bytes | None:
            principal = await questions.asker(msg)
            if principal is None:
                return None
            require_agent(principal)
            served.asked(principal.tenant)
            tenant, _ = subjects.parse_registry(msg.subject)
            return await questions.answer(principal, msg, lambda: answer(principal, tenant, msg.data or b"{}"))

        return serve

    def _list(self, principal: Principal, tenant: str, data: bytes) -> bytes:
        query = _decode(_queries, data)
        limit = query.limit or MAX_PAGE
        page = select(self._mirror.clients(tenant), principal, msgspec.structs.replace(query, limit=limit))
        return _encode(page.clients, page.after)

    def _find(self, principal: Principal, tenant: str, data: bytes) -> bytes:
        wanted = _decode(_finds, data)
        found = offering(self._mirror.clients(tenant).values(), principal, wanted.target, wanted.action)
        following = sorted((each for each in found if _id(each) > wanted.after), key=_id)
        return _encode(following, None)

    def _get(self, principal: Principal, tenant: str, data: bytes) -> bytes:
        address = ClientAddress(tenant, _decode(_gets, data).client_id)
        client = self._mirror.get(*address)
        if client is None and self._mirror.lost.knows(principal, address, self._clock()):
            raise Unavailable.while_client_is_away()
        if client is None or not may(principal, view_of(client.record)):
            raise ClientNotFound
        return codec.encode(client.record)


def _worked_on(questions: Questions, served: QuestionSubjects, work: _Work) -> Callable[[Msg], Awaitable[bytes | None]]:
    """Return an endpoint for a question with a slow answer."""

    async def serve(msg: Msg) -> bytes | None:
        principal = await questions.asker(msg)
        if principal is None:
            return None
        require_admin(principal)
        served.asked(principal.tenant)
        await questions.answer(principal, msg, lambda: None)  # which bounds its size
        return await work(principal, msg)

    return serve


def _decode(decoder: msgspec.json.Decoder[_Asked], data: bytes) -> _Asked:
    """Decode an agent's question. Refuse near misses of fields, because ignoring one would widen the question."""
    asked = codec.decode(decoder, data)
    codec.refuse_near_misses(data, asked.__struct_encode_fields__)
    return asked


def _encode(clients: Iterable[Client], after: str | None) -> bytes:
    """Encode as many records as fit into a message. `after` is the next page's start if all of them fit."""
    records: list[msgspec.Raw] = []
    size, last = 0, None
    for client in clients:
        record = codec.encode(client.record)
        size += len(record) + 1
        if records and size > MAX_PAGE_BYTES:
            return codec.encode(_ClientList(records, last))
        records.append(msgspec.Raw(record))
        last = _id(client)
    return codec.encode(_ClientList(records, after))


def _id(client: Client) -> str:
    return client.record.client_id
