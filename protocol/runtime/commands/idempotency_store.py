"""The entries of commands under idempotency keys, as gateways and agent APIs read and write them.

Each write names the revision that it replaces and for how long it is kept: a write without that would stay for ever.

Versions before stores of each tenant kept all entries in one bucket. While that is there, a key that the tenant's own
store does not have is looked up in it, so that no command runs twice.
"""

import asyncio
import contextlib

import msgspec
import nats.errors

from protocol import codec, subjects
from protocol.errors import Unavailable
from protocol.idempotency import IdempotencyEntry, decode_entry
from protocol.runtime.commands.evidence import SECOND_LOOK_SECONDS, Doubt, Evidence, has_just_reconnected
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams.bucket import NOTHING, Bucket, Value
from protocol.runtime.streams.jetstream import NoStream, StoreRefused, WrongRevision
from protocol.runtime.streams.key_stream import KeyStreams
from protocol.runtime.streams.stores import keys_of
from protocol.runtime.streams.tenant_stores import TenantStores

PING_TIMEOUT_SECONDS = 0.8
GONE_SECONDS = 60.0  # for which a bucket that was not there is not looked for again
_FULL = (
    "the idempotency keys of this tenant fill their store (AGENTBRIDGE_KEYS_MAX_BYTES, or what NATS has room for); "
    "commands without a key go on"
)


class StoredEntry(msgspec.Struct, frozen=True):
    """What lies under a key: its revision, and the entry, None where there is none (any more).

    `retired` tells that it lies in the bucket of earlier versions.
    """

    revision: int
    entry: IdempotencyEntry | None
    retired: bool = False

    @property
    def ended(self) -> IdempotencyEntry | None:
        """The entry, where it has its outcome."""
        return self.entry if self.entry is not None and self.entry.ended else None


class IdempotencyStore:
    """Reads and writes entries. All raise `Unavailable` where JetStream does not answer."""

    def __init__(self, connection: Connection, stores: TenantStores, keep_seconds: int) -> None:
        self._connection = connection
        self._stores = stores
        self._keys = KeyStreams(connection)
        self._retired = _RetiredEntries(connection)
        self._keep_seconds = keep_seconds
        self._loop = asyncio.get_running_loop()

    async def prepare(self, key: str) -> None:
        """Have the store of a key's tenant made, as far as that can be done; writes tell if it is not there."""
        with contextlib.suppress(Unavailable):
            await self._stores.ensure(keys_of(_parts(key)[0]))

    async def read(self, key: str) -> StoredEntry:
        """Return what lies under a key now, as far as the replica that answers knows."""
        value = await self._keys.read(*_parts(key))
        if value.data is not None:
            return StoredEntry(value.revision, decode_entry(value.data))
        retired = await self._retired.read(key)
        if retired.data is not None:
            return StoredEntry(retired.revision, decode_entry(retired.data), retired=True)
        return StoredEntry(value.revision, None)

    async def write(
        self, key: str, entry: IdempotencyEntry, expected: int = NOTHING, *, at_least_seconds: float = 0
    ) -> int:
        """Write an entry over the revision `expected` and return the new one; raise `WrongRevision` over any other.

        It is kept for the time of the settings, or longer where a command may take longer than that. Raises
        `StoreRefused` if the tenant's keys fill their store, even after a registry was asked for more room.
        """
        if expected == NOTHING and (await self._retired.read(key)).data is not None:
            raise WrongRevision(key)
        ttl_seconds = max(self._keep_seconds, round(at_least_seconds))
        return await self._write(key, codec.encode(entry), expected, ttl_seconds)

    async def remove(self, key: str, expected: int) -> None:
        """Free a key; raise `WrongRevision` where somebody else has written it."""
        await self._keys.free(*_parts(key), expected)

    async def lose(self, key: str, stored: StoredEntry) -> StoredEntry:
        """End a command whose gateway is gone with `client_lost`, and return what lies there then."""
        assert stored.entry is not None
        lost = stored.entry.lose()
        try:
            if stored.retired:
                return await self._retired.write(key, lost, stored.revision, self._keep_seconds)
            return StoredEntry(await self.write(key, lost, stored.revision), lost)
        except WrongRevision:  # the gateway itself, or another witness, was faster
            return await self.read(key)

    async def _write(self, key: str, data: bytes, expected: int, ttl_seconds: int) -> int:
        tenant, name = _parts(key)
        try:
            written = await self._keys.write(tenant, name, data, expected, ttl_seconds)
        except NoStream:
            self._stores.forget(keys_of(tenant).stream)
            await self._stores.ensure(keys_of(tenant))
            written = await self._keys.write(tenant, name, data, expected, ttl_seconds)
        except StoreRefused:
            with contextlib.suppress(Unavailable):
                await self._stores.grow(keys_of(tenant))
            try:
                written = await self._keys.write(tenant, name, data, expected, ttl_seconds)
            except StoreRefused as exc:
                raise StoreRefused(_FULL) from exc
        self._stores.took(keys_of(tenant).stream)
        self._stores.wrote(keys_of(tenant), len(data))
        return written

    async def is_gone(self, gateway_id: str) -> bool:
        """Tell whether a gateway has ended: two *no responders* at least 200 ms apart, or two silences.

        Neither counts right after this process's own reconnect.
        """
        doubt = Doubt()
        while True:
            evidence = await self._ping(gateway_id)
            if evidence is Evidence.ANSWER or has_just_reconnected(self._connection):
                return False
            if doubt.weigh(evidence, self._loop.time()):
                return True
            await asyncio.sleep(SECOND_LOOK_SECONDS)

    async def _ping(self, gateway_id: str) -> Evidence:
        """Ask a gateway whether it lives. Raises `Unavailable` where NATS is away: that says nothing of the gateway."""
        try:
            await self._connection.request(subjects.gateway(gateway_id, "ping"), b"", PING_TIMEOUT_SECONDS)
        except nats.errors.NoRespondersError:
            return Evidence.NO_RESPONDERS
        except TimeoutError as exc:
            if not self._connection.connected:
                raise Unavailable("NATS is away; try again in a moment") from exc
            return Evidence.SILENCE
        return Evidence.ANSWER


class _RetiredEntries:
    """The bucket of earlier versions, until a registry removes it."""

    def __init__(self, connection: Connection) -> None:
        self._bucket = Bucket(connection, subjects.RETIRED_KEYS_BUCKET)
        self._loop = asyncio.get_running_loop()
        self._gone_until = float("-inf")
        connection.on_reconnect(self._look_again)

    async def read(self, key: str) -> Value:
        """Return what lies under a key; nothing does if the bucket is gone."""
        if self._loop.time() < self._gone_until:
            return Value(NOTHING, None)
        value = await self._bucket.read_if_there(key)
        if value is None:
            self._gone_until = self._loop.time() + GONE_SECONDS
        return value or Value(NOTHING, None)

    async def write(self, key: str, entry: IdempotencyEntry, expected: int, keep_seconds: int) -> StoredEntry:
        """Write over a revision; raise `WrongRevision` over any other."""
        revision = await self._bucket.put(key, codec.encode(entry), expected, ttl_seconds=keep_seconds)
        return StoredEntry(revision, entry, retired=True)

    def _look_again(self) -> None:
        self._gone_until = float("-inf")


def _parts(key: str) -> tuple[str, str]:
    """Return the tenant of a key, and its name in the tenant's store."""
    tenant, _, name = key.partition(".")
    return tenant, name
