"""The registry process: keeps the clients bucket true and answers questions about it."""

from protocol.runtime.process import early_signals

if __name__ == "__main__":
    early_signals.end_at_once()  # before the slow imports

# isort: split

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

from protocol import subjects
from protocol.runtime.clients.mirror import Mirror
from protocol.runtime.commands.audit_history import AuditHistory
from protocol.runtime.nats import login_keys
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.nats.responder import Responder
from protocol.runtime.process import life
from protocol.runtime.process.announcement import announce
from protocol.runtime.process.answer_counts import AnswerCounts
from protocol.runtime.process.metrics import Metrics
from protocol.runtime.process.probe_server import PATHS, ProbeServer
from protocol.runtime.streams.bucket import Bucket
from protocol.runtime.tokens import Verifier
from registry.audit import AuditReading
from registry.bucket.announcements import Announcer
from registry.bucket.gateway_records import GatewayRecords
from registry.bucket.store import Store
from registry.endpoints import Endpoints
from registry.gateways.monitor import GatewayMonitor
from registry.gateways.peers import Peers
from registry.gateways.sync import Syncs
from registry.logins.agent_connections import AgentConnections, agent_connections
from registry.logins.callout import Logins
from registry.logins.disconnections import Disconnections
from registry.question_subjects import QuestionSubjects
from registry.settings import RegistrySettings
from registry.stores.streams import Streams
from registry.stores.tenants import TenantStreams

SERVICE = "agentbridge-registry"


@contextlib.asynccontextmanager
async def serving(settings: RegistrySettings, connection: Connection, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
    """Serve when JetStream is ready and the bucket has been read. Parts end in the reverse order of their entry."""
    async with (
        agent_connections(settings, settings.nats_system_password) as connections,
        _serving(settings, connection, connections, tasks),
    ):
        yield


@contextlib.asynccontextmanager
async def _serving(
    settings: RegistrySettings, connection: Connection, connections: AgentConnections | None, tasks: asyncio.TaskGroup
) -> AsyncIterator[None]:
    bucket = Bucket(connection, subjects.CLIENTS_BUCKET)
    streams = Streams(connection, settings.replicas)
    await streams.ensure()
    tenants = TenantStreams(connection, settings.replicas, settings.ceilings, tasks)
    pairs = login_keys.pairs_of(settings.nats_account_seed, settings.nats_xkey_seed)
    disconnections = Disconnections(
        connection, bucket, connections, tenants, tasks, agents_log_in=bool(pairs), audited=settings.audit == "on"
    )
    verifier = Verifier(settings, disconnections.denied.require_admitted)
    gateway_records, announcer, peers = GatewayRecords(), Announcer(connection, tenants), Peers(connection)
    mirror = Mirror(connection, gateway_records.observe, disconnections.denied.observe)
    store = Store(bucket, mirror, gateway_records, announcer)
    syncs = Syncs(connection, store, tasks)
    monitor = GatewayMonitor(connection, tasks, gateway_records, peers, store, syncs)
    logins = Logins(connection, tasks, verifier, pairs)
    async with (
        connected_for_questions(settings, connection) as asking,
        logins.serving(settings.drain_seconds),
        announcer.announcing(tasks),
    ):
        for name, loop in (("mirror", mirror.run), ("streams", streams.run), ("stores", tenants.run)):
            tasks.create_task(loop(), name=name)
        await mirror.filled.wait()
        tasks.create_task(monitor.run(), name="gateway monitor")

        def counters() -> dict[str, int]:
            return disconnections.counters() | connection.stores.counters()

        responder = Responder(
            connection, tasks, SERVICE, logins.metadata, secrets.token_hex(11), lambda: logins.counters() | counters()
        )
        endpoints = Endpoints(mirror, store, syncs, monitor, peers, verifier, tenants)
        reading = AuditReading(AuditHistory(connection))
        await reading.start()
        served = QuestionSubjects(asking, tasks, mirror)
        async with responder.serving(settings.drain_seconds), served.served():
            more = {"audit": reading.answer, "disconnect": disconnections.answer}
            questions = await endpoints.serve_agents(responder, asking, served, more)
            await endpoints.serve(responder)
            await connection.flush()  # whoever reads the next line may send a request at once
            await asking.verify_permissions()
            answers = AnswerCounts(dict.fromkeys(PATHS, 200))
            parts = connection, disconnections, connection.stores, logins, questions, served, answers
            probes = ProbeServer(
                Metrics(SERVICE, lambda: {name: count for part in parts for name, count in part.counters().items()}),
                answers,
                lambda: _missing(connection, asking),
            )
            async with probes.serving(settings.registry_host, settings.registry_port) as port:
                announce("registry", None if port is None else f"http://{settings.registry_host}:{port}")
                yield


@contextlib.asynccontextmanager
async def connected_for_questions(settings: RegistrySettings, connection: Connection) -> AsyncIterator[Connection]:
    """Yield a second connection, for agents' questions, so that a flood of them delays nothing else."""
    async with connect(settings, "registry-questions", "registry", drain=False) as asking:
        connection.end_with(asking)
        yield asking


def _missing(connection: Connection, asking: Connection) -> str:
    """Return the parts that this process still lacks for its work."""
    if not connection.connected:
        return "NATS is away"
    return "" if asking.connected else "NATS is away for the questions of agents"


if __name__ == "__main__":
    life.run("registry", RegistrySettings, serving, user="registry")
