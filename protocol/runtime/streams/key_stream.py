"""The last message of each key in a tenant's key stream, only written by revision.

Keys are read by direct gets. Any replica may answer, so a value may be old. Only a write by revision decides.
"""

import nats.errors

from protocol import subjects
from protocol.errors import Unavailable
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.bucket import NOTHING, Value
from protocol.runtime.streams.jetstream import EXPECTED_REVISION_HEADER, TTL_HEADER, JetStreamError
from protocol.runtime.streams.stores import keys_of

FREED_SECONDS = 5  # until the empty message that frees a key expires
_NOT_FOUND = "404"


class KeyStreams:
    """The key streams of all tenants.

    All methods raise `Unavailable` if JetStream does not answer. Writes raise `NoStream` if the tenant has no key
    stream, `StoreRefused` if it is full, and `WrongRevision` if the key does not have the expected revision.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def read(self, tenant: str, name: str) -> Value:
        """Return a key's value. It is empty if the key is free or the tenant has no stream."""
        operation = f"{jetstream.API}.DIRECT.GET.{keys_of(tenant).stream}.{subjects.idempotency_key(tenant, name)}"
        try:
            msg = await self._connection.request(operation, b"", jetstream.TIMEOUT_SECONDS)
        except TimeoutError as exc:
            raise Unavailable("the store of idempotency keys does not answer; try again in a moment") from exc
        except nats.errors.NoRespondersError:
            return Value(NOTHING, None)
        headers = msg.headers or {}
        if headers.get("Status") == _NOT_FOUND:
            return Value(NOTHING, None)
        if "Nats-Sequence" not in headers:
            raise Unavailable("the store of idempotency keys cannot be read now; try again in a moment")
        return Value(int(headers["Nats-Sequence"]), msg.data or None)

    async def write(self, tenant: str, name: str, data: bytes, expected: int, ttl_seconds: int) -> int:
        """Replace the revision `expected`, and return the new one."""
        headers = {EXPECTED_REVISION_HEADER: str(expected), TTL_HEADER: f"{ttl_seconds}s"}
        subject, stream = subjects.idempotency_key(tenant, name), keys_of(tenant).stream
        try:
            return await jetstream.publish(self._connection, subject, data, headers, stream=stream)
        except JetStreamError as exc:
            raise Unavailable(f"the store of idempotency keys refuses this ({exc}); try again in a moment") from exc

    async def free(self, tenant: str, name: str, expected: int) -> None:
        """Free a key that has the revision `expected`."""
        await self.write(tenant, name, b"", expected, FREED_SECONDS)
