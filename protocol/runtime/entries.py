"""The bucket of commands under idempotency keys, as gateways and agent APIs read and write it.

Always the stream's leader is read, and each write names the revision that it replaces and for how long it is kept: a
write without that would stay for ever.
"""

import asyncio

import msgspec
import nats.errors

from protocol import codec, subjects
from protocol.errors import Unavailable
from protocol.idempotency import Entry, decode_entry
from protocol.runtime.bucket import NOTHING, Bucket
from protocol.runtime.caller import SECOND_LOOK_SECONDS, Doubt, Evidence, has_just_reconnected
from protocol.runtime.jetstream import WrongRevision
from protocol.runtime.nats import Connection

PING_TIMEOUT_SECONDS = 0.8


class Stored(msgspec.Struct, frozen=True):
    """What lies under a key: its revision, and the entry, None where there is none (any more)."""

    revision: int
    entry: Entry | None

    @property
    def ended(self) -> Entry | None:
        """The entry, where it has its outcome."""
        return self.entry if self.entry is not None and self.entry.ended else None


class Entries:
    """Reads and writes entries. All raise `Unavailable` where JetStream does not answer."""

    def __init__(self, connection: Connection, keep_seconds: int) -> None:
        self._connection = connection
        self._bucket = Bucket(connection, subjects.IDEMPOTENCY_BUCKET)
        self._keep_seconds = keep_seconds
        self._loop = asyncio.get_running_loop()

    async def read(self, key: str) -> Stored:
        """Return what lies under a key now."""
        value = await self._bucket.read(key)
        return Stored(value.revision, decode_entry(value.data) if value.data else None)

    async def write(self, key: str, entry: Entry, expected: int = NOTHING, *, at_least_seconds: float = 0) -> int:
        """Write an entry over the revision `expected` and return the new one; raise `WrongRevision` over any other.

        It is kept for the time of the settings, or longer where a command may take longer than that.
        """
        ttl_seconds = max(self._keep_seconds, round(at_least_seconds))
        return await self._bucket.put(key, codec.encode(entry), expected, ttl_seconds=ttl_seconds)

    async def remove(self, key: str, expected: int) -> None:
        """Free a key; raise `WrongRevision` where somebody else has written it."""
        await self._bucket.remove(key, expected)

    async def lose(self, key: str, stored: Stored) -> Stored:
        """End a command whose gateway is gone with `client_lost`, and return what lies there then."""
        assert stored.entry is not None
        lost = stored.entry.lose()
        try:
            return Stored(await self.write(key, lost, stored.revision), lost)
        except WrongRevision:  # the gateway itself, or another witness, was faster
            return await self.read(key)

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
