"""The Model Context Protocol on standard input and output, for hosts that start their servers as programs.

Each request goes to `/mcp` of an agent API, in the newest revision of the protocol, whichever the host speaks. Only
this module imports the `mcp` library, which is an optional extra.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.session import ServerSession
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    DiscoverResult,
    ListToolsResult,
    PaginatedRequestParams,
)

from protocol.runtime.version import SERVICE_VERSION

NAME = "agentbridge"
MODERN = "2026-07-28"
AGAIN_SECONDS = 5.0
HTTP_TIMEOUT = httpx2.Timeout(30, read=330)  # longer than the longest command; streams have comments every 15 s

Context = ServerRequestContext[Any, Any]
TokenNow = Callable[[], str | None]


class _BearerNow(httpx2.Auth):
    """Sends the present token with each request, because a host runs for longer than a token is valid."""

    def __init__(self, token_now: TokenNow) -> None:
        self._token_now = token_now

    def auth_flow(self, request: httpx2.Request) -> Any:
        token = self._token_now()
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        yield request


class McpBridge:
    """Passes requests on, and tells the host when the list of tools changes."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._bus = InMemorySubscriptionBus()
        # The last session that was opened. A host opens one.
        self._session: ServerSession | None = None
        self.server = Server[Any](
            NAME,
            version=SERVICE_VERSION,
            instructions=client.instructions,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_subscriptions_listen=ListenHandler(self._bus),
        )
        self.server.middleware.clear()

    async def serve(self) -> None:
        """Serve the host until it closes our input."""
        options = self.server.create_initialization_options(NotificationOptions(tools_changed=True))
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(self._follow(), name="follow changes of the list")
            async with stdio_server() as (incoming, outgoing):
                await self.server.run(incoming, outgoing, options)
            following.cancel()

    async def _list_tools(self, ctx: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        self._session = ctx.session
        return await self._client.list_tools(cursor=params.cursor if params else None, cache_mode="bypass")

    async def _call_tool(self, ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        meta: Any = {name: value for name, value in (ctx.meta or {}).items() if name.startswith("agentbridge/")}
        result = await self._client.session.call_tool(
            params.name,
            params.arguments,
            progress_callback=ctx.session.report_progress,
            meta=meta or None,
        )
        if ctx.protocol_version < MODERN and not isinstance(result.structured_content, dict):
            # Older revisions allow only an object.
            result.structured_content = None
        return result

    async def _follow(self) -> None:
        """Tell the host of changes. After a lost stream tell it, too, because a change may have been missed."""
        while True:
            # Any end of the stream, by the server or the network, is followed by another try.
            with contextlib.suppress(MCPError, RuntimeError, httpx2.HTTPError, TimeoutError):
                async with self._client.listen(tools_list_changed=True) as changes:
                    async for _ in changes:
                        await self._tell()
            await asyncio.sleep(AGAIN_SECONDS)
            await self._tell()

    async def _tell(self) -> None:
        await self._bus.publish(ToolsListChanged())
        if self._session is not None and self._session.protocol_version < MODERN:
            await self._session.send_tool_list_changed()


@contextlib.asynccontextmanager
async def connected_bridge(url: str, token_now: TokenNow) -> AsyncGenerator[McpBridge]:
    """Connect to an agent API. Raises `MCPError` if it refuses, `httpx2.HTTPError` if nobody answers."""
    async with (
        httpx2.AsyncClient(auth=_BearerNow(token_now), timeout=HTTP_TIMEOUT, trust_env=False) as http,
        Client(streamable_http_client(url, http_client=http), mode=MODERN) as client,
    ):
        # A pinned revision asks the server nothing, so we do: for its instructions, and to be refused now if at all.
        client.session.adopt(DiscoverResult.model_validate(await client.session.send_discover(MODERN)))
        await client.list_tools(cache_mode="bypass")
        yield McpBridge(client)


async def serve(url: str, token_now: TokenNow) -> None:
    """Serve a host on standard input and output until it closes them."""
    async with connected_bridge(url, token_now) as bridge:
        await bridge.serve()


def sentence_of(group: BaseExceptionGroup[Exception]) -> str:
    """Return the sentence of the first error in a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
