"""The halves of registries that write, in the test's own process: for races that whole processes would hide."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from nats.aio.msg import Msg

from protocol import subjects
from protocol.runtime.clients.mirror import Mirror
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.streams.bucket import Bucket
from registry.bucket.announcements import Announcer
from registry.bucket.gateway_entry import read_gateway_entry
from registry.bucket.gateway_records import GatewayRecords
from registry.bucket.store import Store
from registry.settings import RegistrySettings
from registry.stores.streams import Streams
from registry.stores.tenants import TenantStreams
from support.processes.registry import Announced
from support.settings import settings_for


class Half:
    """The half of a registry that writes. Its mirror hears nothing until `follow()`."""

    def __init__(self, connection: Connection, tasks: asyncio.TaskGroup) -> None:
        self.gateway_records = gateway_records = GatewayRecords()
        self.connection = connection
        self.bucket = Bucket(connection, subjects.CLIENTS_BUCKET)
        self.mirror = Mirror(connection, gateway_records.observe)
        self.streams = TenantStreams(connection, 1, settings_for(RegistrySettings).ceilings, tasks)
        self.announcer = Announcer(connection, self.streams)
        self.store = Store(self.bucket, self.mirror, gateway_records, self.announcer)
        self.tasks = tasks
        self.running = [tasks.create_task(self.announcer.run())]

    async def follow(self) -> None:
        """Let the mirror catch up and go on."""
        self.running.append(self.tasks.create_task(self.mirror.run()))
        await self.mirror.filled.wait()

    async def stored(self, client_id: str) -> tuple[str, int] | None:
        """Return who holds a client, and its session's revision."""
        data = (await self.bucket.read(subjects.client_key("default", client_id))).data
        if data is None:
            return None
        found = json.loads(data)
        return found["gatewayId"], found["revision"]

    async def number(self) -> int:
        """Return the number of the last report of gw-1 that was applied."""
        return read_gateway_entry((await self.bucket.read(subjects.gateway_key("gw-1"))).data).number


@contextlib.asynccontextmanager
async def halves(url: str, count: int = 1) -> AsyncIterator[tuple[list[Half], Announced]]:
    """Run halves of registries, each on a connection of its own; listen to what they announce."""
    settings = settings_for(RegistrySettings, url)
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connect(settings, "r", "registry")) for _ in range(count)]
        await Streams(connections[0], 1).ensure()
        announced = Announced()

        async def take(msg: Msg) -> None:
            await announced.take(msg)

        await connections[0].subscribe(subjects.ALL_CLIENT_CHANGES, take)
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        made = [Half(connection, tasks) for connection in connections]
        yield made, announced
        for task in [task for half in made for task in half.running]:
            task.cancel()
