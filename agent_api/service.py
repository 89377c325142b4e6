"""The agent API's life: its parts put together, served, announced, and ended in order."""

import asyncio
import logging
import secrets

from agent_api.app import build
from agent_api.audit.endpoint import AuditEndpoint
from agent_api.audit.feed import Feed
from agent_api.commands.balance import Balance
from agent_api.commands.candidates import Candidates
from agent_api.commands.endpoint import CommandEndpoint
from agent_api.commands.intake import Intake
from agent_api.commands.keyed import Keyed
from agent_api.commands.reaching import Reaching
from agent_api.commands.refusals import Refusals
from agent_api.commands.sending import Commands
from agent_api.events.endpoint import EventsEndpoint
from agent_api.events.hub import Hub
from agent_api.health import Health
from agent_api.http.loopback import LoopbackOnly
from agent_api.http.server import HttpServer, listen, url_of
from agent_api.http.waiting import Waits
from agent_api.routes import Directory
from agent_api.settings import ApiSettings
from agent_api.socket.door import SocketDoor
from agent_api.socket.outlook import Outlook
from agent_api.socket.surroundings import Surroundings
from protocol.access import may, view_of
from protocol.errors import ConfigurationError, Unauthenticated, Unavailable
from protocol.origins import Origins
from protocol.runtime import process
from protocol.runtime.audit import AuditTrail
from protocol.runtime.audit_history import AuditHistory
from protocol.runtime.auth import Verifier
from protocol.runtime.caller import Caller, Known
from protocol.runtime.entries import Entries
from protocol.runtime.metrics import Metrics
from protocol.runtime.mirror import Mirror
from protocol.runtime.nats import Connection
from protocol.runtime.responder import Responder
from protocol.runtime.settings import variable
from protocol.subjects import ClientAddress

SERVICE = "agentbridge-agent-api"
ENVELOPE_BYTES = 32 * 1024  # a command's message on NATS: its headers, with the token, and what we add to its body

log = logging.getLogger(__name__)


class AgentApi:
    """An agent API that serves at `url`."""

    def __init__(
        self,
        url: str,
        server: HttpServer,
        sockets: SocketDoor,
        hub: Hub,
        feed: Feed,
        intake: Intake,
        waits: Waits,
        refusals: Refusals,
        health: Health,
        settings: ApiSettings,
    ) -> None:
        self.url = url
        self._refusals = refusals
        self._sockets = sockets
        self._hub = hub
        self._feed = feed
        self._server = server
        self._intake = intake
        self._waits = waits
        self._health = health
        self._settings = settings

    async def drain(self) -> None:
        """Linger, take no connection or command more, end readers, wait (bounded) for commands, close connections.

        A load balancer has put its next request on a connection before it can see that one closed, and then cuts its
        caller off. So nothing is closed before it has had the time to find this process not ready.
        """
        self._health.leave()
        await asyncio.sleep(self._settings.linger_seconds)
        self._server.stop_accepting()
        self._sockets.drain()
        goodbye = Unavailable("this process is shutting down; come back and resume from the last id")
        self._hub.close(goodbye)
        self._feed.close(goodbye)
        try:
            async with asyncio.timeout(self._settings.drain_seconds):
                await self._intake.drain()
        except TimeoutError:
            log.warning("cancelling %d commands that have no answer yet", self._intake.commands)
            self._waits.give_up()
        await self._sockets.close()
        await self._server.close()
        self._refusals.flush()


async def start(settings: ApiSettings, connection: Connection, tasks: asyncio.TaskGroup) -> AgentApi:
    """Start to serve. Raises `ConfigurationError` where the address or NATS's limits do not allow it."""
    _check_max_payload(settings, connection)
    candidates, balance, outlook = Candidates(), Balance(), Outlook()
    verifier, mirror = Verifier(settings), Mirror(connection, candidates.observe, balance.observe, outlook.observe)
    caller = Caller(connection, _known(mirror, verifier))
    intake, waits = Intake(), Waits(tasks)
    reaching = Reaching(mirror, candidates, balance, caller.in_flight_at, intake, settings.max_message_bytes)
    keyed = Keyed(Entries(connection, settings.idempotency_ttl_seconds), reaching)
    refusals = await _start_audit(settings, connection)
    commands = Commands(caller, reaching, keyed, refusals, passes_tokens_on=not verifier.off)
    command = CommandEndpoint(settings, verifier, commands, intake, waits)
    hub = Hub(connection)
    origins = Origins(settings.allowed_origins)
    directory = Directory(verifier, mirror, connection)
    health = Health(connection, mirror.filled, Metrics(SERVICE, refusals.counters))
    history = AuditHistory(connection)
    feed = Feed(connection, history, tasks)
    audit = AuditEndpoint(verifier, history, feed, waits)
    app = build(command, EventsEndpoint(verifier, hub, waits), audit, directory, health, origins)
    listener = listen(settings.api_host, settings.api_port)
    sockets = SocketDoor(settings, origins, Surroundings(commands, intake, verifier, mirror, hub, outlook, tasks))
    server = HttpServer(LoopbackOnly(app, origins) if verifier.off else app, sockets.connection, listener)
    await caller.start(tasks)
    await hub.start()
    await history.start()
    await Responder(connection, tasks, SERVICE, {}, f"api-{secrets.token_hex(8)}", refusals.counters).announce()
    tasks.create_task(mirror.run(), name="mirror")
    tasks.create_task(sockets.run_clock(), name="clock of agents' sockets")
    tasks.create_task(hub.run(), name="events")
    tasks.create_task(server.run_until_closed(), name="HTTP server")
    await server.wait_serving()
    url = url_of(listener)
    process.announce("agent_api", url)
    return AgentApi(url, server, sockets, hub, feed, intake, waits, refusals, health, settings)


def _known(mirror: Mirror, verifier: Verifier) -> Known:
    """Return who tells the caller that a client is there though NATS cannot reach it just now.

    Whether a client exists is told to those alone who may see it.
    """

    async def known(address: ClientAddress, token: str | None) -> bool:
        client = mirror.get(*address)
        if client is None:
            return False
        try:
            return may(await verifier.verify(token), view_of(client.record))
        except Unauthenticated:  # it has expired since the command was sent
            return False

    return known


async def _start_audit(settings: ApiSettings, connection: Connection) -> Refusals:
    if settings.audit == "off":
        return Refusals()
    trail = AuditTrail(connection)
    await trail.start()
    return Refusals(trail, with_parameters=settings.audit_parameters == "on")


def _check_max_payload(settings: ApiSettings, connection: Connection) -> None:
    room = connection.client.max_payload - ENVELOPE_BYTES
    if settings.max_message_bytes > room:
        raise ConfigurationError(
            f"{variable('max_message_bytes')} is {settings.max_message_bytes}, but NATS takes messages up to "
            f"{connection.client.max_payload} bytes: set {room} or less, or raise max_payload in nats.conf"
        )
