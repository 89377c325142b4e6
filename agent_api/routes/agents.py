"""`DELETE /api/agents/{sub}`: an administrator ends all connections of an agent, which is then refused for a while."""

import msgspec
import nats.errors
from starlette.requests import Request
from starlette.responses import Response

from agent_api.http.responses import json_response
from agent_api.http.sharing import share_turns
from protocol import codec, subjects
from protocol.access import Principal, require_admin
from protocol.errors import Internal, InvalidRequest, Unavailable, from_body
from protocol.messages import AUTHORIZATION_HEADER, ERROR_CODE_HEADER, ErrorResponse
from protocol.reports import DENIAL_SECONDS, MAX_DENIAL_SECONDS, DisconnectAgentRequest, DisconnectAgentResponse
from protocol.runtime.nats.connection import Connection
from protocol.runtime.tokens import Verifier, bearer

ANSWER_SECONDS = 15.0  # a registry asks all NATS servers for connections several times
MAX_SUB_CHARS = 256

_error_decoder = msgspec.json.Decoder(ErrorResponse)
_response_decoder = msgspec.json.Decoder(DisconnectAgentResponse)


class AgentRoutes:
    """An administrator's routes for agents."""

    def __init__(self, verifier: Verifier, connection: Connection) -> None:
        self._verifier = verifier
        self._connection = connection

    async def disconnect_agent(self, request: Request) -> Response:
        """Let a registry do it; it verifies the token itself. Each agent API learns of it from the clients bucket."""
        token = bearer(*request.headers.getlist("authorization"))
        principal = await self._verifier.verify(token)
        share_turns(request.scope, principal)
        require_admin(principal)
        asked = DisconnectAgentRequest(_sub(request), _seconds(request))
        return json_response(await self._ask_registry(principal, token, asked))

    async def _ask_registry(
        self, principal: Principal, token: str | None, asked: DisconnectAgentRequest
    ) -> DisconnectAgentResponse:
        subject = subjects.registry(principal.tenant, "disconnect")
        headers = {AUTHORIZATION_HEADER: f"Bearer {token}"} if token else None
        try:
            reply = await self._connection.request(subject, codec.encode(asked), ANSWER_SECONDS, headers)
        except nats.errors.NoRespondersError as exc:
            raise Unavailable("no registry runs, which alone can keep an agent out; start one and try again") from exc
        except TimeoutError as exc:
            raise Unavailable("no registry has answered; the agent may be disconnected or not, so try again") from exc
        if reply.headers and ERROR_CODE_HEADER in reply.headers:
            raise from_body(codec.decode(_error_decoder, reply.data, Internal).error)
        return codec.decode(_response_decoder, reply.data, Internal)


def _sub(request: Request) -> str:
    sub: str = request.path_params["sub"]
    if not 1 <= len(sub) <= MAX_SUB_CHARS:
        raise InvalidRequest(f"`sub`: must be text of 1 to {MAX_SUB_CHARS} characters")
    return sub


def _seconds(request: Request) -> int:
    """Return for how many seconds to refuse the agent. Raises `InvalidRequest` for any other parameter."""
    fields = request.query_params.multi_items()
    if any(name != "seconds" for name, _ in fields) or len(fields) > 1:
        raise InvalidRequest("there is one parameter here, `seconds`")
    text = fields[0][1] if fields else str(DENIAL_SECONDS)
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) <= MAX_DENIAL_SECONDS):
        raise InvalidRequest(f"`seconds`: must be a whole number from 0 to {MAX_DENIAL_SECONDS}")
    return int(text)
