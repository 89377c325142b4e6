"""Asks the registries over NATS: for the clients that the token may see, audit records, and disconnections."""

from collections.abc import AsyncIterator

import msgspec
import nats.errors

from protocol import codec, subjects
from protocol.audit import AuditPage, AuditPageRequest
from protocol.discovery import Query
from protocol.errors import BridgeError, ClientNotFound, Internal, Unavailable, from_body
from protocol.messages import AUTHORIZATION_HEADER, ERROR_CODE_HEADER, ErrorResponse
from protocol.records import ClientRecord
from protocol.reports import DisconnectAgentRequest, DisconnectAgentResponse
from protocol.runtime.nats.connection import Connection
from protocol.subjects import ClientAddress

PAGE = 200
TIMEOUT_SECONDS = 5
DISCONNECT_SECONDS = 15.0  # a registry asks all NATS servers for connections several times


class _RecordPage(msgspec.Struct):
    clients: list[ClientRecord]
    after: str | None = None


class _Wanted(msgspec.Struct, rename="camel"):
    client_id: str


_page_decoder = msgspec.json.Decoder(_RecordPage)
_audit_decoder = msgspec.json.Decoder(AuditPage)
_disconnect_decoder = msgspec.json.Decoder(DisconnectAgentResponse)
_error_decoder = msgspec.json.Decoder(ErrorResponse)


class RegistryClient:
    """The registries' view of one tenant.

    Its methods raise the `BridgeError` in a registry's answer, and `Unavailable` if no registry answers.
    """

    def __init__(self, connection: Connection, tenant: str, token: str | None) -> None:
        self._connection = connection
        self._tenant = tenant
        self._headers = {AUTHORIZATION_HEADER: f"Bearer {token}"} if token else None

    async def clients(self, query: Query) -> AsyncIterator[ClientRecord]:
        """Yield all clients that the query selects, page by page."""
        after: str | None = None
        while True:
            wanted = msgspec.structs.replace(query, limit=PAGE, after=after)
            page = codec.decode(_page_decoder, await self._ask("list", codec.encode(wanted)), Internal)
            for record in page.clients:
                yield record
            if page.after is None:
                return
            after = page.after

    async def knows(self, address: ClientAddress, token: str | None) -> bool:
        """Tell whether a client is registered; raise `Unavailable` if no registry answers."""
        try:
            await self._ask("get", codec.encode(_Wanted(address.client_id)))
        except ClientNotFound:
            return False
        return True

    async def audit(self, asked: AuditPageRequest) -> AuditPage:
        """Return a page of the tenant's audit records. The token must be an administrator's."""
        return codec.decode(_audit_decoder, await self._ask("audit", codec.encode(asked)), Internal)

    async def disconnect(self, asked: DisconnectAgentRequest) -> DisconnectAgentResponse:
        """End all connections of an agent, and refuse it for `asked.seconds`. The token must be an administrator's."""
        answer = await self._ask("disconnect", codec.encode(asked), DISCONNECT_SECONDS)
        return codec.decode(_disconnect_decoder, answer, Internal)

    async def _ask(self, op: str, body: bytes, timeout_seconds: float = TIMEOUT_SECONDS) -> bytes:
        subject = subjects.registry(self._tenant, op)
        try:
            reply = await self._connection.request(subject, body, timeout_seconds, self._headers)
        except nats.errors.NoRespondersError as exc:
            raise Unavailable(
                "no registry runs: start one by `agentbridge registry`, or all by `agentbridge up`"
            ) from exc
        except TimeoutError as exc:
            await self._connection.verify_permissions()
            raise Unavailable(f"no registry answered within {timeout_seconds:g} s; try again in a moment") from exc
        if reply.headers and ERROR_CODE_HEADER in reply.headers:
            raise _error(reply.data)
        return reply.data


def _error(body: bytes) -> BridgeError:
    return from_body(codec.decode(_error_decoder, body, Internal).error)
