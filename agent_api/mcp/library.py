"""The one module that imports the library; the endpoint imports it at the first request."""

from agent_api.mcp import exchange
from agent_api.mcp.answers import AnswerWriter
from agent_api.mcp.callers import McpCaller, McpHead
from agent_api.mcp.context import McpContext
from agent_api.mcp.messages import RpcAnswer, RpcMessage
from agent_api.mcp.server import make_server


class InstalledLibrary:
    """The library and a server made with it."""

    def __init__(self, context: McpContext) -> None:
        self._server = make_server(context)

    def is_modern(self, version: str | None) -> bool:
        """Tell whether a request is of the era without a handshake."""
        return exchange.is_modern(version)

    async def answer(self, caller: McpCaller, message: RpcMessage, head: McpHead, writer: AnswerWriter) -> RpcAnswer:
        """Return the answer to a request."""
        return await exchange.serve_request(self._server, exchange.Exchange(caller, message, writer), message, head)
