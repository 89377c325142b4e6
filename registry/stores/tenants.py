"""Makes the stores of tenants at their first use, and grows them while NATS has room.

Any registry may make or grow any store, even at the same time as another one, because each step is one atomic request
to JetStream, and repeating it changes nothing.
"""

import asyncio
import logging
from collections.abc import Mapping

from protocol import subjects
from protocol.errors import BridgeError, ConfigurationError, Internal, Unavailable
from protocol.ids import is_token
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams.jetstream import JetStreamError, StoreRefused, StreamInfo
from protocol.runtime.streams.stores import StoreKind, TenantStore
from registry.stores.configurations import LEAST_BYTES, STRANGERS_BYTES, store
from registry.stores.growth import growth_of
from registry.stores.streams import mend
from registry.stores.writing import ROOM_CURE, StreamWriter

CHECK_SECONDS = 30.0  # between checks of all stores; a busy writer asks earlier
ROOM_LOG_SECONDS = 60.0
KINDS: tuple[StoreKind, ...] = ("events", "audit", "keys")

log = logging.getLogger(__name__)


class TenantStreams:
    """Makes and grows stores. Concurrent requests for one store share a task."""

    def __init__(
        self, connection: Connection, replicas: int, ceilings: Mapping[StoreKind, int], tasks: asyncio.TaskGroup
    ) -> None:
        self._writer = StreamWriter(connection)
        self._replicas = replicas
        self._ceilings = ceilings
        self._tasks = tasks
        self._running: dict[TenantStore, asyncio.Task[BridgeError | None]] = {}
        self._known: set[TenantStore] = set()
        self._room_lines = LogThrottle(ROOM_LOG_SECONDS, asyncio.get_running_loop().time)
        connection.on_reconnect(self._known.clear)

    async def ensure(self, wanted: TenantStore) -> None:
        """Make a store if there is none, and let it grow if that is due.

        Raises `Unavailable` if NATS has no room for it, or JetStream does not answer.
        """
        running = self._running.get(wanted)
        if running is None:
            running = self._tasks.create_task(self._outcome(wanted), name=f"store {wanted.stream}")
            self._running[wanted] = running
            running.add_done_callback(lambda _: self._running.pop(wanted, None))
        error = await asyncio.shield(running)
        if error is not None:
            raise error

    async def ensure_known(self, wanted: TenantStore) -> None:
        """Make a store unless this process knows that it exists. Raises as `ensure()` does."""
        if wanted not in self._known:
            await self.ensure(wanted)

    def forget(self, wanted: TenantStore) -> None:
        """Note that a store has gone."""
        self._known.discard(wanted)

    async def run(self) -> None:
        """Check all stores every 30 s, for ever, because some writers do not ask."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                async for info in self._writer.all():
                    found = _store_of(info)
                    if found is not None:
                        await self._tend_alone(found, info)
            except (BridgeError, JetStreamError) as exc:
                log.info("the stores of tenants cannot be checked now: %s", exc)

    async def _outcome(self, wanted: TenantStore) -> BridgeError | None:
        """Ensure the store and return the error, because a task that raises would end the process."""
        try:
            await self._ensure(wanted)
        except ConfigurationError as exc:
            log.error("%s", exc)
            return Unavailable("the store of this tenant cannot be made; the log of the registry says why")
        except JetStreamError as exc:
            log.error("the stream %s cannot be made or changed: %s", wanted.stream, exc)
            return Unavailable("the store of this tenant cannot be made now; try again in a moment")
        except BridgeError as exc:
            return exc
        except Exception:
            log.exception("the stream %s could not be made", wanted.stream)
            return Internal("the store of this tenant cannot be made; the log of the registry says why")
        self._known.add(wanted)
        return None

    async def _ensure(self, wanted: TenantStore) -> None:
        info = await self._writer.info(wanted.stream)
        # Two registries may find it missing at once. NATS answers the slower one that the name is in use.
        if info is None:
            await self._create(wanted)
        else:
            await self._tend(wanted, info)

    async def _create(self, wanted: TenantStore) -> None:
        config = store(wanted, self._replicas)
        size = await self._writer.create(config | {"max_bytes": min(config["max_bytes"], self._ceiling(wanted))})
        if not size:
            self._warn(wanted, f"NATS has not even {LEAST_BYTES} bytes left for it")
            raise StoreRefused(
                f"NATS has no room for the store of this tenant's {wanted.kind}, which needs {LEAST_BYTES} bytes at "
                "least (max_file_store of its jetstream settings)"
            )
        log.info("made the stream %s of %d bytes", wanted.stream, size)

    async def _tend(self, found: TenantStore, info: StreamInfo) -> None:
        """Correct the settings of an existing store, and let it grow if that is due."""
        await mend(self._writer, info.config, store(found, self._replicas))
        growth = growth_of(info, self._ceiling(found))
        if growth is None:
            return
        # The larger trial shows whether there is room to spare. If it is refused, the store keeps its size.
        if await self._writer.resize(info.config, growth.trial) and await self._writer.resize(info.config, growth.size):
            log.info("the stream %s may hold %d bytes now", found.stream, growth.size)
        else:
            self._warn(found, f"it stays at {info.config['max_bytes']} bytes")

    async def _tend_alone(self, found: TenantStore, info: StreamInfo) -> None:
        """Tend a store, but only log errors, so that one faulty store does not stop the others."""
        try:
            await self._tend(found, info)
        except (BridgeError, JetStreamError, ConfigurationError) as exc:
            log.error("the stream %s cannot be changed: %s", found.stream, exc)

    def _ceiling(self, of: TenantStore) -> int:
        return STRANGERS_BYTES if of.tenant == subjects.STRANGERS else self._ceilings[of.kind]

    def _warn(self, of: TenantStore, what: str) -> None:
        if count := self._room_lines.due():
            log.warning("NATS has no room for the stream %s (%d such): %s; %s", of.stream, count, what, ROOM_CURE)


def _store_of(info: StreamInfo) -> TenantStore | None:
    """Return the tenant's store in a stream, or None if the stream is not one."""
    root, _, rest = info.config["name"].partition("_")
    kind, _, tenant = rest.partition("_")
    if root != subjects.ROOT or not (is_token(tenant) or tenant == subjects.STRANGERS):
        return None
    found = next((TenantStore(each, tenant) for each in KINDS if each == kind), None)
    return found if found is not None and sorted(info.config.get("subjects") or []) == sorted(found.captured) else None
