"""The life of the agent API: assembles its parts, serves, announces itself, and ends the parts in order."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

from agent_api.app import COUNTED_PATHS, ToolParts, build
from agent_api.clients.candidates import Candidates
from agent_api.clients.clocks import ClockWatch
from agent_api.clients.watch import ClientWatches
from agent_api.commands.admission import Admission
from agent_api.commands.audit import CommandAudit
from agent_api.commands.idempotency import KeyedOrders
from agent_api.commands.least_busy import LeastBusy
from agent_api.commands.send import Sender
from agent_api.commands.targets import Targets
from agent_api.context import SocketContext
from agent_api.events.audit_feed import AuditFeed
from agent_api.events.hub import Hub
from agent_api.http.loopback import LoopbackOnly
from agent_api.http.request_counts import RequestCounts
from agent_api.http.server import HttpServer, listen
from agent_api.http.waiting import Waits
from agent_api.mcp.cancels import LegacyCancels
from agent_api.mcp.context import McpContext
from agent_api.mcp.discovery import AuthorizationDiscovery
from agent_api.mcp.endpoint import McpEndpoint
from agent_api.mcp.loading import load
from agent_api.mcp.streams import ChangeStreams
from agent_api.routes.agents import AgentRoutes
from agent_api.routes.audit import AuditEndpoint
from agent_api.routes.command import CommandEndpoint
from agent_api.routes.discovery import DiscoveryRoutes
from agent_api.routes.events import EventsEndpoint
from agent_api.routes.health import HealthRoutes
from agent_api.routes.tools import ToolCallEndpoint, ToolRoutes
from agent_api.settings import ApiSettings
from agent_api.socket.server import SocketServer
from agent_api.tools.ages import ToolAges
from agent_api.tools.catalogue import ToolCatalogue
from agent_api.tools.news import ToolNews
from agent_api.tools.toolbox import Toolbox
from protocol.access import may, view_of
from protocol.errors import PermissionDenied, Unauthenticated, Unavailable
from protocol.origins import Origins
from protocol.runtime.clients.denied_agents import DeniedAgents
from protocol.runtime.clients.mirror import Mirror
from protocol.runtime.commands.audit_history import AuditHistory
from protocol.runtime.commands.audit_log import audit_log
from protocol.runtime.commands.caller import Caller, Known
from protocol.runtime.commands.idempotency_store import IdempotencyStore
from protocol.runtime.connections.bounds import ConnectionBounds
from protocol.runtime.connections.turns import Turns
from protocol.runtime.nats.connection import Connection
from protocol.runtime.nats.responder import Responder
from protocol.runtime.nats.servers import require_room
from protocol.runtime.process.announcement import announce
from protocol.runtime.process.metrics import Metrics
from protocol.runtime.streams.tenant_stores import TenantStores
from protocol.runtime.tokens import Verifier
from protocol.runtime.version import allows_fast_path
from protocol.runtime.websocket.refused_connections import RefusedConnections
from protocol.subjects import ClientAddress

SERVICE = "agentbridge-agent-api"


class AgentApi(NamedTuple):
    """A running agent API, and the parts that its owner may inspect."""

    url: str
    sockets: SocketServer
    hub: Hub
    admission: Admission
    bounds: ConnectionBounds


@contextlib.asynccontextmanager
async def serving(settings: ApiSettings, connection: Connection, tasks: asyncio.TaskGroup) -> AsyncIterator[AgentApi]:
    """Serve agents. The parts end in the reverse order of their entry.

    Raises `ConfigurationError` if the address or NATS's limits do not allow it.
    """
    require_room(connection.client, settings)
    goodbye = Unavailable("this process is shutting down; come back and resume from the last id")
    denied = DeniedAgents(connection.clock.now_ms)
    verifier, origins = Verifier(settings, denied.require_admitted), Origins(settings.allowed_origins)
    waits, admission = Waits(tasks), Admission()
    loop = asyncio.get_running_loop()
    turns = Turns(loop.call_soon, time.perf_counter)
    bounds = ConnectionBounds(
        settings.most_connections,
        settings.max_sockets_per_agent,
        loop.time,
        max_unread_bytes=settings.max_unread_bytes,
    )
    tasks.create_task(bounds.run_clock(), name="clock of unfinished messages")

    async with contextlib.AsyncExitStack() as parts:
        stores = TenantStores(connection)
        await stores.start()
        records = await parts.enter_async_context(audit_log(settings, connection, stores))
        command_audit = CommandAudit(records, with_parameters=settings.audit_parameters == "on")

        candidates, least_busy, client_watches = Candidates(), LeastBusy(), ClientWatches()
        clocks, tool_news = ClockWatch(connection), ToolNews()
        listeners = (candidates, least_busy, client_watches, clocks, tool_news, denied)
        mirror = Mirror(connection, *(listener.observe for listener in listeners))
        for name, loop_of in (("mirror", mirror.run), ("clocks", clocks.run)):
            tasks.create_task(loop_of(), name=name)
        caller = Caller(connection, _known(mirror, verifier), tasks)
        await caller.start()
        targets = Targets(mirror, candidates, least_busy, caller.in_flight_at, admission, settings.max_message_bytes)
        keyed = KeyedOrders(IdempotencyStore(connection, stores, settings.idempotency_ttl_seconds), targets)
        sender = Sender(caller, targets, keyed, command_audit, passes_tokens_on=not verifier.off)

        refused = RefusedConnections("agents", loop.time)

        def counters() -> dict[str, int]:
            counted = (
                requests,
                sender,
                command_audit,
                refused,
                admission,
                bounds,
                tool_news,
                streams,
                connection,
                connection.stores,
            )
            return {name: count for part in counted for name, count in part.counters().items()}

        hub, history = Hub(connection, stores, tasks), AuditHistory(connection, stores)
        await history.start()
        feed = AuditFeed(connection, history, tasks)
        health = HealthRoutes(connection, mirror.filled, Metrics(SERVICE, counters))
        command = CommandEndpoint(settings, verifier, sender, admission, waits)
        ages = ToolAges(connection, tool_news)
        await ages.start()
        catalogue = ToolCatalogue(mirror, tool_news, ages)
        toolbox, cancels, streams = Toolbox(catalogue), LegacyCancels(connection), ChangeStreams(catalogue, denied)
        await cancels.start()
        discovery = AuthorizationDiscovery(settings)
        mcp = McpContext(settings, sender, admission, waits, catalogue, toolbox, cancels, streams)
        tools = ToolParts(
            ToolRoutes(verifier, catalogue),
            ToolCallEndpoint(settings, command, toolbox),
            McpEndpoint(mcp, verifier, origins, discovery, load),
            discovery,
        )
        app = build(
            command,
            EventsEndpoint(verifier, denied, hub, waits),
            AuditEndpoint(verifier, denied, history, feed, waits),
            DiscoveryRoutes(verifier, mirror, connection),
            AgentRoutes(verifier, connection),
            health,
            tools,
            origins,
        )
        context = SocketContext(sender, admission, verifier, mirror, hub, client_watches, tasks, turns, bounds)
        listener = listen(settings.api_host, settings.api_port)
        requests = RequestCounts(LoopbackOnly(app, origins) if verifier.off else app, COUNTED_PATHS)
        sockets = SocketServer(settings, origins, context, refused, denied, requests.count)
        fast = allows_fast_path("http_out", settings.fast_paths)
        server = HttpServer(requests, sockets.upgrades.connection, listener, turns, bounds, writes_whole=fast)

        await parts.enter_async_context(server.connections())
        await parts.enter_async_context(sockets.sockets(tasks))
        await parts.enter_async_context(admission.draining_after(settings.drain_seconds, waits.give_up))
        await parts.enter_async_context(streams.open_to_agents())
        await parts.enter_async_context(feed.open_to_readers(goodbye))
        await parts.enter_async_context(hub.following(goodbye))
        await parts.enter_async_context(sockets.taking_commands())
        ident = f"api-{secrets.token_hex(8)}"
        await Responder(connection, tasks, SERVICE, {}, ident, counters).announce()
        url = await parts.enter_async_context(server.accepting(tasks))
        await parts.enter_async_context(health.lingering(settings.linger_seconds))
        announce("agent_api", url)
        yield AgentApi(url, sockets, hub, admission, bounds)


def _known(mirror: Mirror, verifier: Verifier) -> Known:
    """Return the `known` function of the caller: tells whether an unreachable client exists, or was lost a moment ago.

    Only an agent that may see a client learns that it exists.
    """
    clock = asyncio.get_running_loop().time

    async def known(address: ClientAddress, token: str | None) -> bool:
        client = mirror.get(*address)
        try:
            principal = await verifier.verify(token)
        except (Unauthenticated, PermissionDenied):  # the token has expired since the command was sent
            return False
        if client is not None:
            return may(principal, view_of(client.record))
        if mirror.lost.knows(principal, address, clock()):
            raise Unavailable.while_client_is_away()
        return False

    return known
