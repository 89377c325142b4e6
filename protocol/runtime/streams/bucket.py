"""A KV bucket (ADR-8) written by revision alone, so that two processes never undo each other."""

import logging
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from protocol.errors import PayloadTooLarge, Unavailable
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.jetstream import EXPECTED_REVISION_HEADER, KV_OPERATION_HEADER, TTL_HEADER, JetStreamError

NOTHING = 0
HEADER_BYTES = 1024  # at most, of a write
MARKER_SECONDS = 120  # longer than any mirror goes without a full listing

log = logging.getLogger(__name__)


class Value(msgspec.Struct, frozen=True):
    """A key's last message: its revision, and its data, None where the key was removed or never written."""

    revision: int
    data: bytes | None


class _KvMessage(msgspec.Struct, frozen=True):
    seq: int
    data: bytes = b""


class _KvReply(msgspec.Struct, frozen=True):
    message: _KvMessage


_got = msgspec.json.Decoder(_KvReply)


class Bucket:
    """Read and write the entries of a bucket.

    All raise `Unavailable` where JetStream does not answer, and `PayloadTooLarge` for a value that is larger than NATS
    or the bucket takes.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._stream = f"KV_{name}"

    @property
    def max_value_bytes(self) -> int:
        """How large a value may be: what NATS takes now, less the headers."""
        return self._connection.max_payload - HEADER_BYTES

    async def put(self, key: str, data: bytes, expected: int, *, ttl_seconds: int | None = None) -> int:
        """Write a value over the revision `expected` and return the new one; raise `WrongRevision` over any other.

        The value vanishes after `ttl_seconds`, where given; a later write without it stays for ever.
        """
        headers = {EXPECTED_REVISION_HEADER: str(expected)}
        if ttl_seconds is not None:
            headers[TTL_HEADER] = f"{ttl_seconds}s"
        return await self._publish(key, data, headers)

    async def remove(self, key: str, expected: int, headers: Mapping[str, str] = MappingProxyType({})) -> int:
        """Remove a value as `put()` writes one. The marker, which tells mirrors, vanishes after two minutes.

        It has these `headers` besides its own.
        """
        headers = {
            **headers,
            EXPECTED_REVISION_HEADER: str(expected),
            KV_OPERATION_HEADER: "DEL",
            TTL_HEADER: f"{MARKER_SECONDS}s",
        }
        return await self._publish(key, b"", headers)

    async def read(self, key: str) -> Value:
        """Return what the stream's leader holds, which a mirror or a replica may not have heard of yet."""
        value = await self.read_if_there(key)
        if value is None:
            raise Unavailable(f"the bucket {self._name} is not there; try again in a moment")
        return value

    async def read_if_there(self, key: str) -> Value | None:
        """Return what `read()` does, None if there is no such bucket."""
        operation = f"STREAM.MSG.GET.{self._stream}"
        try:
            got = await jetstream.request(self._connection, operation, _got, last_by_subj=self._subject(key))
        except JetStreamError as exc:
            if exc.err_code == jetstream.MESSAGE_NOT_FOUND:
                return Value(NOTHING, None)
            if exc.err_code == jetstream.STREAM_NOT_FOUND:
                return None
            raise self._refused(exc) from exc
        return Value(got.message.seq, got.message.data or None)

    def _subject(self, key: str) -> str:
        return f"$KV.{self._name}.{key}"

    async def _publish(self, key: str, data: bytes, headers: dict[str, str]) -> int:
        try:
            return await jetstream.publish(self._connection, self._subject(key), data, headers, stream=self._stream)
        except JetStreamError as exc:
            if exc.err_code == jetstream.MESSAGE_TOO_LARGE:
                raise PayloadTooLarge(f"the value is larger than the bucket {self._name} takes") from exc
            raise self._refused(exc) from exc

    def _refused(self, error: JetStreamError) -> Unavailable:
        """Return what peers are told; the operator learns why from the log."""
        log.warning("the bucket %s is refused: %s", self._name, error)
        return Unavailable(f"the bucket {self._name} is not to be had now; try again in a moment")
