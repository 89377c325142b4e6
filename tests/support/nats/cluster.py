"""A cluster of three real nats-servers on loopback, with the users of a deployment, and a bridge that lives on it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from agentbridge.deployment import nats_config
from protocol import subjects
from protocol.errors import Unavailable
from protocol.runtime.nats.connection import connect
from protocol.runtime.settings import Settings
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.stores import audit_of
from support.nats.nats_server import NatsServer, free_port
from support.nats.template import Template, agent_options
from support.processes.bridge import Bridge
from support.processes.child import Process
from support.processes.registry import Observer, observer
from support.settings import environment, settings_for
from support.wait import until

NODES = 3
CLIENTS_STREAM = f"KV_{subjects.CLIENTS_BUCKET}"
STREAMS = (CLIENTS_STREAM, audit_of(subjects.STRANGERS).stream)
WHOLE_SECONDS = 30
_USER_OF = {"gateway": nats_config.GATEWAY, "agent_api": nats_config.API, "registry": nats_config.REGISTRY}
_infos = msgspec.json.Decoder(dict[str, Any])


class Node(NatsServer):
    """A server of the cluster, which also tells over HTTP who is connected to it."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder)
        self.name = name
        self.route_port = free_port()
        self._monitoring_port = free_port()

    def join(self, nodes: list["Node"], users: str) -> None:
        """Configure it as a member."""
        routes = ", ".join(f'"nats://127.0.0.1:{node.route_port}"' for node in nodes if node is not self)
        self.configure(
            f"server_name: {self.name}\n"
            f'cluster {{ name: test, listen: "127.0.0.1:{self.route_port}", routes: [{routes}] }}\n'
            f'http: "127.0.0.1:{self._monitoring_port}"\n'
            f'ping_interval: "2s"\nping_max: 2\n{users}\n'
        )

    async def connected(self) -> set[str]:
        """Return the names of the processes that are connected to it."""
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.get(f"http://127.0.0.1:{self._monitoring_port}/connz")
        return {connection.get("name", "") for connection in answer.json()["connections"]}


class Cluster:
    """Three nodes, and the secrets of their users."""

    def __init__(self, folder: Path) -> None:
        self.nodes = [Node(folder / f"node-{number}", f"node-{number}") for number in range(NODES)]
        self._template = Template()
        for node in self.nodes:
            node.join(self.nodes, self._template.config)

    @property
    def url(self) -> str:
        """All servers, as a process's settings name them."""
        return ",".join(node.url for node in self.nodes)

    def login(self, user: str) -> dict[str, str]:
        """Return the settings by which a process logs in."""
        return self._template.login(user)

    def settings(self, user: str) -> Settings:
        """Return the settings of somebody who only connects."""
        return settings_for(Settings, self.url, **self.login(user))

    def agent_settings(self) -> Settings:
        """Return the settings of an agent, which logs in with its token."""
        return settings_for(Settings, self.url)

    def observer(self) -> AbstractAsyncContextManager[Observer]:
        """Watch as an agent does."""
        return observer(self.nodes[0].url, subjects.client_changes_of("default"), **agent_options("observer"))

    async def start(self) -> None:
        """Start all nodes."""
        await asyncio.gather(*(node.start() for node in self.nodes))

    def kill(self) -> None:
        """Leave nothing behind."""
        for node in self.nodes:
            node.kill()

    async def leader(self, stream: str = CLIENTS_STREAM) -> Node:
        """Return the node that leads a stream, the clients bucket's above all."""
        (info,) = await self._infos(stream)
        name = info["cluster"]["leader"]
        return next(node for node in self.nodes if node.name == name)

    async def is_whole(self) -> bool:
        """Tell whether each stream has a leader, and every other node follows it without lagging."""
        try:
            clusters = [info["cluster"] for info in await self._infos()]
        except Unavailable:  # a node that has just come back does not know everything yet
            return False
        return all(each.get("leader") and _in_step(each.get("replicas", [])) for each in clusters)

    async def whole(self) -> None:
        """Wait until every stream is on all nodes."""
        await until(self.is_whole, WHOLE_SECONDS)

    async def _infos(self, *streams: str) -> list[dict[str, Any]]:
        registry = nats_config.REGISTRY  # the one user that may ask
        async with connect(self.settings(registry), "test", registry) as connection:
            asked = [jetstream.request(connection, f"STREAM.INFO.{name}", _infos) for name in streams or STREAMS]
            return await asyncio.gather(*asked)


class ClusterBridge(Bridge):
    """A bridge on a cluster, where each process logs in as its own user and streams have three replicas."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        super().__init__(folder, cluster.url)
        self._cluster = cluster

    def _process(self, module: str, number: int) -> Process:
        login = self._cluster.login(_USER_OF[module])
        variables = environment(self.nats_url, replicas=NODES, **login)
        return Process(module, self.folder / f"{module}-{number}", variables)


def _in_step(replicas: list[dict[str, Any]]) -> bool:
    return len(replicas) == NODES - 1 and all(each["current"] and not each.get("offline") for each in replicas)


@contextlib.asynccontextmanager
async def running_cluster(folder: Path) -> AsyncIterator[Cluster]:
    """Run a cluster."""
    cluster = Cluster(folder)
    try:
        await cluster.start()
        yield cluster
    finally:
        cluster.kill()


@contextlib.asynccontextmanager
async def bridge_on(cluster: Cluster, folder: Path, **counts: int) -> AsyncIterator[ClusterBridge]:
    """Run a bridge on a cluster: `bridge_on(cluster, folder, gateways=3)`."""
    bridge = ClusterBridge(folder, cluster)
    try:
        await bridge.start(**counts)
        yield bridge
    finally:
        await bridge.close()
