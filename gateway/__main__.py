"""The gateway process: holds the WebSockets of applications and executes commands in their sessions."""

from protocol.runtime.process import early_signals

if __name__ == "__main__":
    early_signals.end_at_once()  # before the slow imports

# isort: split

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from gateway.administration import SERVICE, Administration
from gateway.capabilities.contracts import Contracts
from gateway.client_frames import ClientFrames
from gateway.commands import CommandSubjects
from gateway.dialects.choice import DIALECTS, DialectChoice
from gateway.dialects.dialect import DialectKind
from gateway.events import Events
from gateway.http_endpoints import HttpEndpoints, answer_counts
from gateway.idempotency.commands import Idempotency
from gateway.limits.rate_limits import RateLimits
from gateway.reports import Reporter
from gateway.server import GatewayServer
from gateway.sessions.audit import GatewayAudit
from gateway.sessions.claims import ClaimHandlers
from gateway.sessions.core.limits import SessionLimits
from gateway.sessions.live import Handlers
from gateway.sessions.replies import Replies
from gateway.sessions.resumable import ResumableSessions, ResumeSettings, Sessions
from gateway.sessions.table import SessionTable
from gateway.settings import GatewaySettings
from protocol.ids import new_gateway_id
from protocol.origins import Origins
from protocol.runtime.commands.audit_log import audit_log
from protocol.runtime.commands.idempotency_store import IdempotencyStore
from protocol.runtime.connections.bounds import ConnectionBounds
from protocol.runtime.connections.turns import Turns
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.nats.servers import require_room
from protocol.runtime.process import life
from protocol.runtime.process.announcement import announce
from protocol.runtime.process.metrics import Metrics
from protocol.runtime.settings import variable
from protocol.runtime.streams.tenant_stores import TenantStores
from protocol.runtime.tokens import Verifier
from protocol.runtime.version import allows_fast_path
from protocol.runtime.websocket.connection import SocketBounds
from protocol.runtime.websocket.refused_connections import RefusedConnections

log = logging.getLogger(__name__)


class Counted(Protocol):
    """A part with counters."""

    def counters(self) -> dict[str, int]:
        """Return the counters."""


@contextlib.asynccontextmanager
async def serving(
    settings: GatewaySettings,
    connection: Connection,
    tasks: asyncio.TaskGroup,
    dialects: Sequence[DialectKind] = DIALECTS,
) -> AsyncIterator[str]:
    """Serve applications in these dialects. Yield the URL of the WebSocket.

    The parts end in the reverse order of their entry.
    """
    require_room(connection.client, settings)
    gateway_id, verifier, limits = new_gateway_id(), Verifier(settings), _limits(settings)
    async with contextlib.AsyncExitStack() as parts:
        stores = TenantStores(connection)
        await stores.start()
        records = await parts.enter_async_context(audit_log(settings, connection, stores))
        audit = GatewayAudit(records, with_parameters=limits.audits_parameters)
        replies = Replies(connection, audit)

        for_events = await parts.enter_async_context(connected_for_events(settings, connection))
        reporter = Reporter(gateway_id, connection)
        await parts.enter_async_context(reporter.reporting(tasks))

        store = IdempotencyStore(connection, stores, settings.idempotency_ttl_seconds)
        idempotency = Idempotency(gateway_id, replies, store, limits, tasks, settings.max_kept_outcome_bytes)
        await parts.enter_async_context(idempotency.recording())

        loop = asyncio.get_running_loop()
        turns = Turns(loop.call_soon, time.perf_counter)
        commands = CommandSubjects(connection, replies, verifier, idempotency, tasks, limits, turns)
        tasks.create_task(commands.watch(), name="watch commands")
        handlers = Handlers(
            commands.handle,
            commands.drops,
            idempotency.ended,
            reporter.changed,
            reporter.ended,
            commands.used_up,
            reporter.moved,
        )
        rate_limits = RateLimits(settings.rate_per_agent)
        sessions = SessionTable(gateway_id, connection, tasks, limits, replies, handlers, rate_limits)
        await parts.enter_async_context(sessions.kept())

        contracts, resumable = Contracts(), None
        if settings.resume_secrets:
            resume = ResumeSettings(settings.resume_secrets, settings.resume_grace_seconds)
            claim_handlers = ClaimHandlers(
                commands.handle,
                commands.lose,
                commands.refuse_held_up,
                commands.answer_lost,
                commands.sender,
                lambda: commands.freezes,
                lambda: commands.has_backlog,
            )
            resumable = ResumableSessions(resume, sessions, connection, contracts, turns, tasks, claim_handlers)
            await parts.enter_async_context(resumable.kept())
        elif not verifier.off:
            log.warning("no client can resume its session: set %s to a secret", variable("resume_secret"))

        events, rates = Events(for_events, stores), settings.client_rates()
        await events.start()  # it gets the stream's answers until the connection is drained
        await for_events.verify_permissions()
        shares = ConnectionBounds(
            settings.most_connections,
            settings.max_connections_per_user,
            loop.time,
            max_unread_bytes=settings.max_unread_bytes,
        )
        tasks.create_task(shares.run_clock(), name="clock of unfinished messages")
        fast = [allows_fast_path(name, settings.fast_paths) for name in ("websocket_in", "websocket_out")]
        bounds = SocketBounds(settings.max_message_bytes, settings.send_buffer_bytes, turns, shares, *fast)
        frames = ClientFrames(contracts, events, rates, verifier, tasks, turns)
        refused, choice = RefusedConnections("applications", loop.time), DialectChoice(dialects)
        answers = answer_counts(choice)

        def counters() -> dict[str, int]:
            counted: list[Counted] = [
                sessions,
                replies,
                idempotency,
                commands,
                events,
                rates,
                refused,
                answers,
                shares,
                connection,
                connection.stores,
            ]
            if resumable is not None:
                counted.append(resumable)
            return {name: count for part in counted for name, count in part.counters().items()}

        # It answers until the connection is drained, so that the registry sees this gateway until its end.
        await Administration(gateway_id, sessions, reporter, verifier, counters).serve(connection, tasks)
        origins, metrics = Origins(settings.allowed_origins), Metrics(SERVICE, counters)
        http = HttpEndpoints(connection, sessions, metrics, origins, refused, answers, loopback_only=verifier.off)
        all_sessions = Sessions(sessions, resumable)
        server = GatewayServer(settings, all_sessions, frames, verifier, http, choice, bounds)
        url = await parts.enter_async_context(server.serving())
        announce("gateway", url)
        yield url


@contextlib.asynccontextmanager
async def connected_for_events(settings: GatewaySettings, connection: Connection) -> AsyncIterator[Connection]:
    """Yield a second connection, for events, so that megabytes of waiting events delay no answer to an agent."""
    async with connect(settings, "gateway-events", "gateway") as for_events:
        connection.end_with(for_events)
        for_events.stores = connection.stores
        yield for_events


def _limits(settings: GatewaySettings) -> SessionLimits:
    return SessionLimits(
        command_timeout_ms=settings.command_timeout_ms,
        max_command_timeout_ms=settings.max_command_timeout_ms,
        max_in_flight=settings.max_in_flight_per_client,
        ping_interval_seconds=settings.ping_interval_seconds,
        ping_timeout_seconds=settings.ping_timeout_seconds,
        max_message_bytes=settings.max_message_bytes,
        audits_parameters=settings.audit == "on" and settings.audit_parameters == "on",
    )


if __name__ == "__main__":
    life.run("gateway", GatewaySettings, serving, user="gateway")
