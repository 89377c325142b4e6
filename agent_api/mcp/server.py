"""The library's server with our handlers: list tools, call them, listen to changes."""

import asyncio
import logging
import time
from collections.abc import Generator, Iterable
from typing import Any

import msgspec
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolRequestParams,
    PaginatedRequestParams,
    SubscriptionsListenRequestParams,
)

from agent_api.commands.gather import Gathered
from agent_api.commands.orders import CommandBody, order_of
from agent_api.mcp.call_options import options_of
from agent_api.mcp.choice import ChoiceSeal, chosen_client, question
from agent_api.mcp.context import McpContext
from agent_api.mcp.exchange import Exchange
from agent_api.mcp.messages import INVALID_PARAMS, notification
from agent_api.mcp.results import MODERN, error_result, value_result
from agent_api.tools.formats import mcp
from agent_api.tools.slices import Slices
from agent_api.tools.toolbox import OwnResult
from agent_api.tools.views import Tool
from protocol import codec
from protocol.errors import AmbiguousClient, BridgeError, UnknownCapability
from protocol.runtime.settings import variable
from protocol.runtime.version import SERVICE_VERSION

NAME = "agentbridge"
LIST_MS = 5_000  # for how long a host may keep a list; changes are told besides
LARGE_BYTES = 32 * 1024  # the making of a result from more takes some milliseconds, by another thread
SINCE = {"annotations": "2025-03-26", "title": "2025-06-18"}
SUBSCRIPTION_ID = "io.modelcontextprotocol/subscriptionId"
INSTRUCTIONS = (
    "Each tool is something that an application offers which is open in a user's session at this moment; it is done "
    "there, as that user. If several clients offer a tool, the argument `_client` says which one is meant. Tools come "
    "and go with the applications."
)

log = logging.getLogger(__name__)
_COMPLETE = {"resultType": "complete"}  # the library leaves it out for revisions that do not have it
Context = ServerRequestContext[Any, Any]


class ToolServer(Server[Any]):
    """Announces changes of the list to clients of the older era, too."""

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        """Return the answer to `initialize`."""
        options = notification_options or NotificationOptions(tools_changed=True)
        return super().create_initialization_options(options, experimental_capabilities, extensions)


def make_server(context: McpContext) -> ToolServer:
    """Return a server for all requests of a process."""
    handlers = _ToolHandlers(context)
    server = ToolServer(
        NAME,
        version=SERVICE_VERSION,
        instructions=INSTRUCTIONS,
        on_list_tools=handlers.list_tools,
        on_call_tool=handlers.call_tool,
        on_subscriptions_listen=handlers.listen,
        # Our schemas have no annotations that must be compared with headers, so the library need not look for them.
        get_tool_input_schema=lambda name: None,
    )
    server.middleware.clear()  # it makes a span for each message, even if nobody collects them
    return server


class _ToolHandlers:
    def __init__(self, context: McpContext) -> None:
        self._context = context
        self._seal = ChoiceSeal(context.settings)
        if not self._seal.works and context.settings.auth != "off":
            setting = variable("resume_secret")
            log.warning("no host can ask its user which of several clients is meant: set %s to a secret", setting)

    async def list_tools(self, ctx: Context, params: PaginatedRequestParams | None) -> Any:
        """Return all tools at once. There are 128 at most."""
        if params is not None and params.cursor is not None:
            raise MCPError(INVALID_PARAMS, "there is one page only; ask without a cursor")
        exchange, caller = _exchange(ctx), _exchange(ctx).caller
        listing = await self._context.catalogue.listing(caller.principal, caller.narrowing)
        exchange.unseen["tools"] = await Slices().run(_encoded(listing.tools, ctx.protocol_version))
        return {"tools": [], "ttlMs": LIST_MS, "cacheScope": "private", **_COMPLETE}

    async def call_tool(self, ctx: Context, params: CallToolRequestParams) -> Any:
        """Execute a command; any failure is a result for the model."""
        exchange = _exchange(ctx)
        try:
            outcome = await self._call(exchange, ctx, params)
        except BridgeError as exc:
            if not exchange.is_sent:
                self._refused(exc, exchange, params.name)
            if not exchange.is_sent and isinstance(exc, UnknownCapability):
                raise MCPError(INVALID_PARAMS, exc.message, msgspec.to_builtins(exc.body())) from exc
            outcome = error_result(exc)
        if "resultType" in outcome:
            return outcome
        exchange.unseen |= outcome
        return {"content": [], **_COMPLETE}

    def _refused(self, error: BridgeError, exchange: Exchange, name: str) -> None:
        caller = exchange.caller
        named = self._context.toolbox.named(name, caller.principal, exchange.arguments, caller.narrowing)
        self._context.sender.audit.refused(error, caller.principal, named=named)

    async def _call(self, exchange: Exchange, ctx: Context, params: CallToolRequestParams) -> Any:
        taken = await self._taken(exchange, ctx, params)
        return await self._send(exchange, ctx, taken) if isinstance(taken, CommandBody) else taken

    async def _taken(
        self, exchange: Exchange, ctx: Context, params: CallToolRequestParams
    ) -> CommandBody | dict[str, Any]:
        """Return the command that a call is, or its result, or the question for its client."""
        caller, arguments = exchange.caller, exchange.arguments
        options = options_of(ctx.params or {})
        if params.input_responses:
            self._seal.require(params.request_state, caller.principal, params.name, arguments, time.time())
            options = options._replace(client_id=chosen_client(params.input_responses))
        try:
            taken = await self._context.toolbox.take(
                caller.principal, params.name, arguments, options, caller.narrowing
            )
        except AmbiguousClient as exc:
            if params.input_responses or not self._can_ask(ctx):
                raise
            return question(exc, self._seal.seal(caller.principal, params.name, arguments, time.time()))
        if isinstance(taken, OwnResult):
            return await _result(msgspec.Raw(codec.encode(taken.value)), ctx.protocol_version)
        return taken

    async def _send(self, exchange: Exchange, ctx: Context, body: CommandBody) -> Any:
        caller, settings = exchange.caller, self._context.settings
        order = order_of(body, settings.command_timeout_ms, settings.max_command_timeout_ms)
        exchange.is_sent = True
        outcome = await self._context.sender.send(order, caller.principal, caller.token, exchange.heard)
        assert not isinstance(outcome, Gathered)
        return await _result(outcome.value(), ctx.protocol_version)

    def _can_ask(self, ctx: Context) -> bool:
        """Tell whether the host can let its user choose a client."""
        capabilities = ctx.session.client_capabilities
        able = capabilities is not None and capabilities.elicitation is not None
        return able and ctx.protocol_version >= MODERN and self._seal.works

    async def listen(self, ctx: Context, params: SubscriptionsListenRequestParams) -> Any:
        """Report changes in the list of tools until the token expires, the process stops, or the client goes."""
        exchange = _exchange(ctx)
        meta = {SUBSCRIPTION_ID: ctx.request_id}
        wanted = {"toolsListChanged": True} if params.notifications.tools_list_changed else {}
        if not wanted:
            raise MCPError(INVALID_PARAMS, "nothing is asked for that could change; ask for toolsListChanged")
        acknowledged = {"notifications": wanted, "_meta": meta}
        message = notification("notifications/subscriptions/acknowledged", acknowledged)
        async for _ in self._context.streams.changes(exchange.caller):
            exchange.notify_now(message)
            message = notification("notifications/tools/list_changed", {"_meta": meta})
        return {"_meta": meta, **_COMPLETE}


async def _result(raw: msgspec.Raw, version: str) -> dict[str, Any]:
    if len(memoryview(raw)) > LARGE_BYTES:
        return await asyncio.to_thread(value_result, raw, version)
    return value_result(raw, version)


def _encoded(tools: Iterable[Tool], version: str) -> Generator[None, None, msgspec.Raw]:
    """Return a list of tools as JSON, in steps; without the fields that a revision does not have."""
    unknown = {name for name, since in SINCE.items() if version < since}
    entries: list[bytes] = []
    for tool in tools:
        (entry,) = mcp([tool])
        entries.append(codec.encode({name: value for name, value in entry.items() if name not in unknown}))
        yield
    return msgspec.Raw(b"[%b]" % b",".join(entries))


def _exchange(ctx: Context) -> Exchange:
    exchange = ctx.request
    assert isinstance(exchange, Exchange)
    return exchange
