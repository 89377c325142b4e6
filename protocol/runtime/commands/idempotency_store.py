"""The entries of idempotency keys, read and written by gateways and agent APIs.

Each write names the revision that it replaces and a TTL, because an entry without one would never expire.

Older versions kept the entries of all tenants in one bucket. While that bucket exists, a key that is missing in the
tenant's own store is looked up there, so that no command runs twice.
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
GONE_SECONDS = 60.0  # between lookups of a bucket that does not exist
_FULL = (
    "the idempotency keys of this tenant fill their store (AGENTBRIDGE_KEYS_MAX_BYTES, or what NATS has room for); "
    "commands without a key go on"
)


class StoredEntry(msgspec.Struct, frozen=True):
    """A key's revision and its entry, which is None if the key is free.

    `retired` means that it is in the bucket of older versions.
    """

    revision: int
    entry: IdempotencyEntry | None
    retired: bool = False

    @property
    def ended(self) -> IdempotencyEntry | None:
        """The entry, if it has an outcome; else None."""
        return self.entry if self.entry is not None and self.entry.ended else None


class IdempotencyStore:
    """Reads and writes entries. All methods raise `Unavailable` if JetStream does not answer."""

    def __init__(self, connection: Connection, stores: TenantStores, keep_seconds: int) -> None:
        self._connection = connection
        self._stores = stores
        self._keys = KeyStreams(connection)
        self._retired = _RetiredEntries(connection)
        self._keep_seconds = keep_seconds
        self._loop = asyncio.get_running_loop()

    async def prepare(self, key: str) -> None:
        """Try to have the store of a key's tenant made. If that fails, the next write raises the reason."""
        with contextlib.suppress(Unavailable):
            await self._stores.ensure(keys_of(_parts(key)[0]))

    async def read(self, key: str) -> StoredEntry:
        """Return a key's revision and entry. A replica may answer, so they may be some milliseconds old."""
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
        """Replace the revision `expected` by an entry, and return the new revision.

        The entry expires after the time in the settings, or after `at_least_seconds` if that is longer.

        Raises `WrongRevision` if the key has another revision, and `StoreRefused` if the tenant's store is full and a
        registry could not let it grow.
        """
        # A key of the old bucket is used, although the tenant's own store does not have it.
        if expected == NOTHING and (await self._retired.read(key)).data is not None:
            raise WrongRevision(key)
        ttl_seconds = max(self._keep_seconds, round(at_least_seconds))
        return await self._write(key, codec.encode(entry), expected, ttl_seconds)

    async def remove(self, key: str, expected: int) -> None:
        """Free a key. Raises `WrongRevision` if another process has written it since `expected`."""
        await self._keys.free(*_parts(key), expected)

    async def lose(self, key: str, stored: StoredEntry) -> StoredEntry:
        """Record `client_lost` for a command, because its gateway is gone. Return the key's entry afterwards."""
        assert stored.entry is not None
        lost = stored.entry.lose()
        try:
            if stored.retired:
                return await self._retired.write(key, lost, stored.revision, self._keep_seconds)
            return StoredEntry(await self.write(key, lost, stored.revision), lost)
        except WrongRevision:
            # The gateway itself, or another process that found it gone, wrote first. That entry counts.
            return await self.read(key)

    async def _write(self, key: str, data: bytes, expected: int, ttl_seconds: int) -> int:
        tenant, name = _parts(key)
        try:
            written = await self._keys.write(tenant, name, data, expected, ttl_seconds)
        except NoStream:
            # NATS came back empty. Nothing was stored, so it is safe to write again.
            self._stores.forget(keys_of(tenant).stream)
            await self._stores.ensure(keys_of(tenant))
            written = await self._keys.write(tenant, name, data, expected, ttl_seconds)
        except StoreRefused:
            with contextlib.suppress(Unavailable):
                # The second write says whether there is room.
                await self._stores.grow(keys_of(tenant))
            try:
                written = await self._keys.write(tenant, name, data, expected, ttl_seconds)
            except StoreRefused as exc:
                raise StoreRefused(_FULL) from exc
        self._stores.took(keys_of(tenant).stream)
        self._stores.wrote(keys_of(tenant), len(data))
        return written

    async def is_gone(self, gateway_id: str) -> bool:
        """Probe a gateway until it answers (False) or is lost (True): *no responders* for 0.5 s, or two silences.

        Neither counts within 1.5 s of this process's own reconnect. Raises `Unavailable` if NATS is away.
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
        """Ping a gateway. Raises `Unavailable` if NATS is away, because that says nothing about the gateway."""
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
    """The bucket of older versions, until a registry removes it."""

    def __init__(self, connection: Connection) -> None:
        self._bucket = Bucket(connection, subjects.RETIRED_KEYS_BUCKET)
        self._loop = asyncio.get_running_loop()
        self._gone_until = float("-inf")
        connection.on_reconnect(self._look_again)

    async def read(self, key: str) -> Value:
        """Return a key's value, which is empty if the key is free or the bucket is gone."""
        if self._loop.time() < self._gone_until:
            return Value(NOTHING, None)
        value = await self._bucket.read_if_there(key)
        if value is None:
            self._gone_until = self._loop.time() + GONE_SECONDS
        return value or Value(NOTHING, None)

    async def write(self, key: str, entry: IdempotencyEntry, expected: int, keep_seconds: int) -> StoredEntry:
        """Replace the revision `expected`. Raises `WrongRevision` if the key has another one."""
        revision = await self._bucket.put(key, codec.encode(entry), expected, ttl_seconds=keep_seconds)
        return StoredEntry(revision, entry, retired=True)

    def _look_again(self) -> None:
        self._gone_until = float("-inf")


def _parts(key: str) -> tuple[str, str]:
    """Return the tenant of a key, and its name in the tenant's store."""
    tenant, _, name = key.partition(".")
    return tenant, name
