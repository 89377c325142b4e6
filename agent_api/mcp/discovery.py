"""Authorization discovery: the protected resource's metadata (RFC 9728), and the challenge that leads to it."""

from starlette.types import Receive, Scope, Send

from agent_api.http.asgi import write_answer
from agent_api.http.problems import Header, HttpAnswer, HttpFault, http_answer_of
from agent_api.settings import ApiSettings
from protocol import codec
from protocol.runtime.settings import split_list

WELL_KNOWN = "/.well-known/oauth-protected-resource"
METADATA_PATHS = frozenset({WELL_KNOWN, f"{WELL_KNOWN}/mcp"})
MCP_PATH = "/mcp"


class AuthorizationDiscovery:
    """Publishes the authorization servers in the settings, if there are any."""

    def __init__(self, settings: ApiSettings) -> None:
        self._issuers = split_list(settings.oauth_issuers)
        self._resource = settings.oauth_resource

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for the metadata."""
        await write_answer(send, receive, self._answer(scope))

    def challenge(self, scope: Scope) -> Header | None:
        """Return the header of a 401 that leads to the metadata, or None if there is no authorization server."""
        if not self._issuers:
            return None
        url = f"{self._url(scope).removesuffix(MCP_PATH)}{WELL_KNOWN}{MCP_PATH}"
        return b"www-authenticate", f'Bearer resource_metadata="{url}"'.encode()

    def _answer(self, scope: Scope) -> HttpAnswer:
        if scope["method"] not in ("GET", "HEAD"):
            return http_answer_of(HttpFault(405, "this path takes GET only", (b"allow", b"GET, HEAD")))
        if not self._issuers:
            sentence = "there is no authorization server here; ask the operator for a token"
            return http_answer_of(HttpFault(404, sentence))
        found = {
            "resource": self._url(scope),
            "authorization_servers": self._issuers,
            "bearer_methods_supported": ["header"],
            "resource_name": "AgentBridge",
        }
        return HttpAnswer(200, codec.encode(found))

    def _url(self, scope: Scope) -> str:
        """Return the URL of `/mcp` for hosts: the setting, or else made from the request's `Host`."""
        if self._resource is not None:
            return self._resource
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        plain = "".join(char for char in host if char.isalnum() or char in ".-:[]_")
        return f"{scope['scheme']}://{plain}{MCP_PATH}"
