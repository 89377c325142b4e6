"""The registry process: keeps the clients bucket true and answers who is connected."""

import asyncio
import secrets

from protocol import subjects
from protocol.runtime import process
from protocol.runtime.auth import Verifier
from protocol.runtime.bucket import Bucket
from protocol.runtime.mirror import Mirror
from protocol.runtime.nats import Connection
from protocol.runtime.responder import Responder
from registry.announcements import Announcer
from registry.endpoints import Endpoints
from registry.hearing import Hearing
from registry.holdings import Holdings
from registry.settings import RegistrySettings
from registry.store import Store
from registry.streams import Streams
from registry.sync import Syncs
from registry.watch import Watch

SERVICE = "agentbridge-registry"


class Registry:
    """A registry that serves; `drain()` ends it in order."""

    def __init__(self, responder: Responder, announcer: Announcer, drain_seconds: float) -> None:
        self._responder = responder
        self._announcer = announcer
        self._drain_seconds = drain_seconds

    async def drain(self) -> None:
        """Take no more requests, finish those under way, announce what they changed."""
        await self._responder.drain(self._drain_seconds)
        await self._announcer.drain()


async def start(settings: RegistrySettings, connection: Connection, tasks: asyncio.TaskGroup) -> Registry:
    """Start to serve, once JetStream is ready and the bucket has been read."""
    streams = Streams(connection, settings.replicas)
    await streams.ensure()
    holdings, announcer, hearing = Holdings(), Announcer(connection), Hearing(connection)
    mirror = Mirror(connection, holdings.observe)
    store = Store(Bucket(connection, subjects.CLIENTS_BUCKET), mirror, holdings, announcer)
    syncs = Syncs(connection, store, tasks)
    watch = Watch(connection, tasks, holdings, hearing, store, syncs)
    for name, loop in (("mirror", mirror.run), ("streams", streams.run), ("announce", announcer.run)):
        tasks.create_task(loop(), name=name)
    await mirror.filled.wait()
    tasks.create_task(watch.run(), name="watch")
    responder = Responder(connection, tasks, SERVICE, {}, secrets.token_hex(11))
    await Endpoints(mirror, store, syncs, watch, hearing, Verifier(settings)).serve(responder)
    await connection.flush()  # who reads that it serves may ask at once
    process.announce("registry")
    return Registry(responder, announcer, settings.drain_seconds)


if __name__ == "__main__":
    process.run("registry", RegistrySettings, start, user="registry")
