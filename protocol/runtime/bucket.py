"""A KV bucket (ADR-8) written by revision alone, so that two processes never undo each other."""

import logging

import msgspec

from protocol.errors import Unavailable
from protocol.runtime import jetstream
from protocol.runtime.jetstream import EXPECTED_REVISION_HEADER, KV_OPERATION_HEADER, TTL_HEADER, JetStreamError
from protocol.runtime.nats import Connection

NOTHING = 0
MARKER_SECONDS = 120  # longer than any mirror goes without a full listing

log = logging.getLogger(__name__)


class Value(msgspec.Struct, frozen=True):
    """A key's last message: its revision, and its data, None where the key was removed or never written."""

    revision: int
    data: bytes | None


class _Message(msgspec.Struct, frozen=True):
    seq: int
    data: bytes = b""


class _Got(msgspec.Struct, frozen=True):
    message: _Message


_got = msgspec.json.Decoder(_Got)


class Bucket:
    """Read and write the entries of a bucket. All raise `Unavailable` where JetStream does not answer."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name

    async def put(self, key: str, data: bytes, expected: int, *, ttl_seconds: int | None = None) -> int:
        """Write a value over the revision `expected` and return the new one; raise `WrongRevision` over any other.

        The value vanishes after `ttl_seconds`, where given; a later write without it stays for ever.
        """
        headers = {EXPECTED_REVISION_HEADER: str(expected)}
        if ttl_seconds is not None:
            headers[TTL_HEADER] = f"{ttl_seconds}s"
        return await self._publish(key, data, headers)

    async def remove(self, key: str, expected: int) -> int:
        """Remove a value as `put()` writes one. The marker, which tells mirrors, vanishes after two minutes."""
        headers = {
            EXPECTED_REVISION_HEADER: str(expected),
            KV_OPERATION_HEADER: "DEL",
            TTL_HEADER: f"{MARKER_SECONDS}s",
        }
        return await self._publish(key, b"", headers)

    async def read(self, key: str) -> Value:
        """Return what the stream's leader holds, which a mirror or a replica may not have heard of yet."""
        operation = f"STREAM.MSG.GET.KV_{self._name}"
        try:
            got = await jetstream.request(self._connection, operation, _got, last_by_subj=self._subject(key))
        except JetStreamError as exc:
            if exc.err_code == jetstream.MESSAGE_NOT_FOUND:
                return Value(NOTHING, None)
            raise self._refused(exc) from exc
        return Value(got.message.seq, got.message.data or None)

    def _subject(self, key: str) -> str:
        return f"$KV.{self._name}.{key}"

    async def _publish(self, key: str, data: bytes, headers: dict[str, str]) -> int:
        try:
            return await jetstream.publish(self._connection, self._subject(key), data, headers)
        except JetStreamError as exc:
            raise self._refused(exc) from exc

    def _refused(self, error: JetStreamError) -> Unavailable:
        """Return what peers are told; the operator learns why from the log."""
        log.warning("the bucket %s is refused: %s", self._name, error)
        return Unavailable(f"the bucket {self._name} is not to be had now; try again in a moment")
