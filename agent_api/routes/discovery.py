"""Discovery over HTTP, from the mirror and filtered by `may()`; and the disconnection of a client."""

import asyncio
from http import HTTPStatus

import msgspec
import nats.errors
from nats.aio.msg import Msg
from starlette.requests import Request
from starlette.responses import Response

from agent_api.clients.find import KnownClients, clients_of, visible_client
from agent_api.http.problems import HttpFault, http_answer_of
from agent_api.http.responses import json_response, problem_response, tagged_response
from agent_api.http.sharing import share_turns
from agent_api.routes.discovery_query import next_link, read_query, refuse_query
from protocol import codec, discovery
from protocol.access import Principal, require_admin, require_agent
from protocol.discovery import Client, Page, Query
from protocol.errors import ClientNotFound, Internal, Unavailable, from_body
from protocol.messages import AUTHORIZATION_HEADER, ERROR_CODE_HEADER, ErrorResponse
from protocol.reports import DisconnectRequest, DisconnectResponse
from protocol.runtime.nats.connection import Connection
from protocol.runtime.tokens import Verifier, bearer
from protocol.subjects import gateway as gateway_subject

DISCONNECT_SECONDS = 2

_error_decoder = msgspec.json.Decoder(ErrorResponse)
_response_decoder = msgspec.json.Decoder(DisconnectResponse)


class DiscoveryRoutes:
    """The routes for clients and their capabilities."""

    def __init__(self, verifier: Verifier, known: KnownClients, connection: Connection) -> None:
        self._verifier = verifier
        self._known = known
        self._connection = connection

    async def capabilities(self, request: Request) -> Response:
        """List the capabilities of each visible client that the query selects."""
        page, query, headers = await self._page(request)
        offered = {c.record.client_id: discovery.narrowed(c.capabilities, query) for c in page.clients}
        return tagged_response(request, offered, headers)

    async def clients(self, request: Request) -> Response:
        """List the records of the visible clients."""
        page, _, headers = await self._page(request)
        return tagged_response(request, [client.record for client in page.clients], headers)

    async def client(self, request: Request) -> Response:
        """Return one client's record."""
        principal, _ = await self._principal(request)
        refuse_query(request.query_params.multi_items())
        return json_response(self._client(request, principal).record)

    async def socket(self, request: Request) -> Response:
        """Answer a request without an upgrade with 426 (RFC 9110 section 15.5.22)."""
        await self._principal(request)
        response = problem_response(
            http_answer_of(HttpFault(HTTPStatus.UPGRADE_REQUIRED, "open a WebSocket at this path"))
        )
        response.headers.update({"upgrade": "websocket", "connection": "upgrade"})
        return response

    async def disconnect(self, request: Request) -> Response:
        """End a client's session."""
        principal, token = await self._principal(request)
        require_admin(principal)
        refuse_query(request.query_params.multi_items())
        client = self._client(request, principal)
        await self._ask_gateway(client, token)
        return Response(status_code=204)

    def _client(self, request: Request, principal: Principal) -> Client:
        now = asyncio.get_running_loop().time()
        return visible_client(self._known, principal, request.path_params["client_id"], now)

    async def _page(self, request: Request) -> tuple[Page, Query, dict[str, str]]:
        """Return the page that the query selects, the query, and the header that leads to the next page."""
        principal, _ = await self._principal(request)
        query = read_query(request.query_params.multi_items())
        page = discovery.select(clients_of(self._known, principal), principal, query)
        return page, query, _link(request, query, page)

    async def _principal(self, request: Request) -> tuple[Principal, str | None]:
        token = bearer(*request.headers.getlist("authorization"))
        principal = await self._verifier.verify(token)
        share_turns(request.scope, principal)
        require_agent(principal)
        return principal, token

    async def _ask_gateway(self, client: Client, token: str | None) -> None:
        """Let the client's gateway end the session. It verifies the token itself."""
        record = client.record
        subject = gateway_subject(record.gateway_id, "disconnect")
        body = codec.encode(DisconnectRequest(record.tenant, record.client_id))
        headers = {AUTHORIZATION_HEADER: f"Bearer {token}"} if token else None
        try:
            reply = await self._connection.request(subject, body, DISCONNECT_SECONDS, headers)
        except (nats.errors.NoRespondersError, TimeoutError) as exc:
            raise Unavailable("the gateway that holds this client does not answer; try again in a moment") from exc
        if not _disconnected(reply):
            raise ClientNotFound


def _disconnected(reply: Msg) -> bool:
    """Return whether the gateway ended the session. Raises the error in its answer."""
    if reply.headers and ERROR_CODE_HEADER in reply.headers:
        raise from_body(codec.decode(_error_decoder, reply.data, Internal).error)
    return codec.decode(_response_decoder, reply.data, Internal).disconnected


def _link(request: Request, query: Query, page: Page) -> dict[str, str]:
    return {} if page.after is None else {"link": next_link(request.url.path, query, page.after)}
