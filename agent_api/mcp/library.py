"""The module that needs the library. The endpoint imports it at the first request."""

from agent_api.mcp import exchange
from agent_api.mcp.answers import AnswerWriter
from agent_api.mcp.callers import McpCaller, McpHead
from agent_api.mcp.context import McpContext
from agent_api.mcp.messages import RpcAnswer, RpcMessage
from agent_api.mcp.server import make_server


class InstalledLibrary:
    """A server made with the library."""

    def __init__(self, context: McpContext) -> None:
        self._server = make_server(context)

    def is_modern(self, version: str | None) -> bool:
        """Tell whether a request belongs to the modern era, which has no handshake."""
        return exchange.is_modern(version)

    async def answer(self, caller: McpCaller, message: RpcMessage, head: McpHead, writer: AnswerWriter) -> RpcAnswer:
        """Return the answer to a request."""
        return await exchange.serve_request(self._server, exchange.Exchange(caller, message, writer), message, head)
