"""Disconnects an agent for an administrator: `agentbridge.T.registry.disconnect`.

1. The registry writes an entry into the clients bucket, so that every process refuses the agent. Each agent API ends
   the agent's connections when its mirror gets the entry.
2. The registry ends the agent's connections to all NATS servers.
3. Every other registry that gets the entry does the same once, because it may have admitted the agent just before.
"""

import asyncio
import hashlib
import logging
import time

import msgspec
from nats.aio.msg import Msg

from protocol import codec, subjects
from protocol.access import Principal, require_admin
from protocol.audit import REGISTRY, SUCCESS, AuditRecord
from protocol.errors import BridgeError, Conflict, Overloaded, PermissionDenied, Unavailable
from protocol.messages import timestamp
from protocol.reports import AgentDenial, DisconnectAgentRequest, DisconnectAgentResponse
from protocol.runtime.clients.denied_agents import DeniedAgents
from protocol.runtime.nats.agent_login import user_name
from protocol.runtime.nats.connection import Connection
from protocol.runtime.settings import variable
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.bucket import Bucket
from protocol.runtime.streams.jetstream import WrongRevision
from protocol.runtime.streams.stores import audit_of
from registry.logins.agent_connections import AgentConnections
from registry.stores.tenants import TenantStreams

MAX_DENIALS = 1000  # of a tenant
KEEP_SECONDS = 300  # an entry outlives the refusal, for mirrors that were away
LOOK_AFTER_SECONDS = 1.0  # until the first registry is done, and logins that it did not see have ended
WRITES = 3  # attempts, because another administrator may write the same entry

log = logging.getLogger(__name__)
_requests = msgspec.json.Decoder(DisconnectAgentRequest)


class Disconnections:
    """Ends agents' connections. `agents_log_in`: agents can log in to NATS. `audited`: disconnections are recorded."""

    def __init__(
        self,
        connection: Connection,
        bucket: Bucket,
        connections: AgentConnections | None,
        tenants: TenantStreams,
        tasks: asyncio.TaskGroup,
        *,
        agents_log_in: bool,
        audited: bool,
    ) -> None:
        self.denied = DeniedAgents(connection.clock.now_ms, self._on_denial)
        self._connection = connection
        self._bucket = bucket
        self._connections = connections
        self._tenants = tenants
        self._tasks = tasks
        self._agents_log_in = agents_log_in
        self._audited = audited
        self._looks: dict[str, None] = {}
        self._looking = False
        self._disconnected = 0

    async def answer(self, admin: Principal, msg: Msg) -> bytes:
        """Disconnect the agent and return the result. Raises `PermissionDenied` unless the caller is an admin."""
        return codec.encode(await self._disconnect(admin, msg))

    def counters(self) -> dict[str, int]:
        """Return the number of agents that were disconnected through this registry."""
        return {"agentsDisconnected": self._disconnected}

    async def _disconnect(self, admin: Principal, msg: Msg) -> DisconnectAgentResponse:
        require_admin(admin)
        tenant, _ = subjects.parse_registry(msg.subject)
        if tenant != admin.tenant:
            raise PermissionDenied("this token is of another tenant")
        asked = codec.decode(_requests, msg.data)
        codec.refuse_near_misses(msg.data, asked.__struct_encode_fields__)
        # Refuse first, then end the connections: in the other order the agent could connect again in between.
        started = time.monotonic()
        until_ms = await self._deny(tenant, asked)
        log.info("agent %r of %s is disconnected by %r for %d s", asked.sub, tenant, admin.sub, asked.seconds)
        ended, error = await self._ended(user_name(tenant, asked.sub), kept_out=asked.seconds > 0)
        await self._record(admin, asked.sub, error, round((time.monotonic() - started) * 1000))
        if error is not None:
            raise error
        self._disconnected += 1
        return DisconnectAgentResponse(asked.sub, timestamp(until_ms / 1000), ended)

    async def _deny(self, tenant: str, asked: DisconnectAgentRequest) -> int:
        """Write the entry that refuses an agent. Return the end of the refusal."""
        if self.denied.of_tenant(tenant) >= MAX_DENIALS:
            raise Overloaded(f"{MAX_DENIALS} agents of this tenant are refused already; wait until some may return")
        until_ms = self._connection.clock.now_ms() + 1000 * asked.seconds
        data = codec.encode(AgentDenial(tenant, asked.sub, until_ms))
        key = subjects.agent_key(tenant, hashlib.sha256(asked.sub.encode()).hexdigest())
        for _ in range(WRITES):
            # Another administrator may write the same entry: read its revision, and try again if it has changed.
            try:
                former = await self._bucket.read(key)
                await self._bucket.put(key, data, former.revision, ttl_seconds=asked.seconds + KEEP_SECONDS)
                return until_ms
            except WrongRevision:
                continue
        raise Conflict("another administrator disconnects this agent just now; try again")

    async def _ended(self, user: str, *, kept_out: bool) -> tuple[int, Unavailable | None]:
        if self._connections is None and not self._agents_log_in:
            # Agents cannot log in to NATS, so there is no connection to end.
            return 0, None
        if self._connections is None:
            return 0, Unavailable(
                "the agent is kept out, but its connections to NATS go on: this registry cannot end them, because "
                f"{variable('nats_system_password')} is not set there"
            )
        try:
            if kept_out:
                return await self._connections.end_all(user), None
            # End connections once only: with 0 seconds the agent may connect again at once, and stay.
            return len(await self._connections.end(user)), None
        except Unavailable as exc:
            return 0, exc

    async def _record(self, admin: Principal, sub: str, error: BridgeError | None, duration_ms: int) -> None:
        """Record the disconnection. Raises `Unavailable` if that fails; the agent is disconnected nevertheless."""
        if not self._audited:
            return
        record = AuditRecord(
            at=timestamp(time.time()),
            tenant=admin.tenant,
            outcome=SUCCESS if error is None else error.code.value,
            duration_ms=duration_ms,
            by=REGISTRY,
            agent=admin.sub,
            role=admin.role,
            disconnected=sub,
        )
        store = audit_of(record.tenant)
        try:
            await self._tenants.ensure(store)
            await jetstream.publish(self._connection, record.subject, codec.encode(record), {}, stream=store.stream)
        except (Unavailable, jetstream.JetStreamError) as exc:
            raise Unavailable("the agent is disconnected, but the audit stream did not store the record") from exc

    # --- denials of other registries ---

    def _on_denial(self, denial: AgentDenial) -> None:
        """End the NATS connections of a refused agent once, one agent after the other."""
        if denial.until_ms <= self._connection.clock.now_ms() or self._connections is None:
            return
        self._looks[user_name(denial.tenant, denial.sub)] = None
        # One task for all, because each look asks every NATS server.
        if not self._looking:
            self._looking = True
            self._tasks.create_task(self._look(self._connections), name="end connections of disconnected agents")

    async def _look(self, connections: AgentConnections) -> None:
        try:
            await asyncio.sleep(LOOK_AFTER_SECONDS)
            while self._looks:
                user, _ = self._looks.popitem()
                await connections.end(user)
        except BridgeError as exc:
            self._looks.clear()
            log.warning("could not find the connections of disconnected agents: %s", exc)
        finally:
            self._looking = False
