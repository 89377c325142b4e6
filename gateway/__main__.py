"""The gateway process: holds the WebSockets of applications and executes commands in their sessions."""

import asyncio
from functools import partial

from gateway.administration import SERVICE, Administration
from gateway.audit import Audit
from gateway.commands import Commands
from gateway.contracts import Contracts
from gateway.events import Events
from gateway.idempotency import Idempotency
from gateway.pace import Pace
from gateway.receiving import Receiving
from gateway.reports import Reporter
from gateway.server import GatewayServer
from gateway.session import Limits
from gateway.sessions import Sessions
from gateway.settings import GatewaySettings
from protocol.errors import ConfigurationError
from protocol.ids import new_gateway_id
from protocol.runtime import process
from protocol.runtime.audit import AuditTrail
from protocol.runtime.auth import Verifier
from protocol.runtime.entries import Entries
from protocol.runtime.metrics import Metrics
from protocol.runtime.nats import Connection

ENVELOPE_BYTES = 32 * 1024
OUTCOMES_SECONDS = 2.0


class Gateway:
    """A gateway that serves; `drain()` ends it in order."""

    def __init__(
        self,
        server: GatewayServer,
        sessions: Sessions,
        idempotency: Idempotency,
        reporter: Reporter,
        drain_seconds: float,
    ) -> None:
        self._server = server
        self._sessions = sessions
        self._idempotency = idempotency
        self._reporter = reporter
        self._drain_seconds = drain_seconds

    async def drain(self) -> None:
        """Take no more clients and commands, let commands end, send the clients elsewhere, tell the registry."""
        self._server.stop_intake()
        self._sessions.drain()
        await self._sessions.wait_commands(self._drain_seconds)
        await self._server.close()
        await self._sessions.wait_gone()
        await self._idempotency.wait_done(OUTCOMES_SECONDS)
        await self._reporter.say_goodbye()
        self._sessions.audit.flush()


async def start(settings: GatewaySettings, connection: Connection, tasks: asyncio.TaskGroup) -> Gateway:
    """Start to serve."""
    _check_max_payload(settings, connection)
    gateway_id, verifier = new_gateway_id(), Verifier(settings)
    audit = await _start_audit(settings, connection)
    reporter = Reporter(gateway_id, connection)
    sessions = Sessions(
        gateway_id,
        connection,
        tasks,
        _limits(settings),
        reporter.changed,
        reporter.ended,
        Pace(settings.rate_per_agent),
        audit,
    )
    entries = Entries(connection, settings.idempotency_ttl_seconds)
    idempotency = Idempotency(sessions, entries, _limits(settings), tasks, settings.max_message_bytes)
    commands = Commands(connection, sessions, verifier, idempotency, tasks, settings.command_timeout_ms)
    events = Events(connection)
    await events.start()
    receiving = Receiving(Contracts(), events, verifier, tasks)
    counters = partial(_counters, sessions, idempotency)
    server = GatewayServer(settings, connection, sessions, receiving, verifier, Metrics(SERVICE, counters))
    await Administration(sessions, reporter, verifier, counters).serve(connection, tasks)
    for name, loop in (("report", reporter.run), ("clock", sessions.run_clock), ("thaw", commands.watch_thaw)):
        tasks.create_task(loop(), name=name)
    process.announce("gateway", await server.start())
    return Gateway(server, sessions, idempotency, reporter, settings.drain_seconds)


async def _start_audit(settings: GatewaySettings, connection: Connection) -> Audit:
    if settings.audit == "off":
        return Audit()
    trail = AuditTrail(connection)
    await trail.start()
    return Audit(trail, with_parameters=settings.audit_parameters == "on")


def _counters(sessions: Sessions, idempotency: Idempotency) -> dict[str, int]:
    return sessions.counters() | idempotency.counters()


def _limits(settings: GatewaySettings) -> Limits:
    return Limits(
        command_timeout_ms=settings.command_timeout_ms,
        max_command_timeout_ms=settings.max_command_timeout_ms,
        max_in_flight=settings.max_in_flight_per_client,
        ping_interval_seconds=settings.ping_interval_seconds,
        ping_timeout_seconds=settings.ping_timeout_seconds,
        max_record_bytes=settings.max_message_bytes,
        audits_parameters=settings.audit == "on" and settings.audit_parameters == "on",
    )


def _check_max_payload(settings: GatewaySettings, connection: Connection) -> None:
    room = connection.client.max_payload - ENVELOPE_BYTES
    if settings.max_message_bytes > room:
        raise ConfigurationError(
            f"AGENTBRIDGE_MAX_MESSAGE_BYTES is {settings.max_message_bytes}, but NATS takes messages up to "
            f"{connection.client.max_payload} bytes: set {room} or less, or raise max_payload in nats.conf"
        )


if __name__ == "__main__":
    process.run("gateway", GatewaySettings, start, user="gateway")
