"""A KV bucket (ADR-8) that is only written by revision, so that no process overwrites another's newer value."""

import logging
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from protocol.errors import PayloadTooLarge, Unavailable
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.jetstream import EXPECTED_REVISION_HEADER, KV_OPERATION_HEADER, TTL_HEADER, JetStreamError

NOTHING = 0
HEADER_BYTES = 1024  # the most that a write's headers take
MARKER_SECONDS = 120  # longer than any mirror works without a full listing

log = logging.getLogger(__name__)


class Value(msgspec.Struct, frozen=True):
    """A key's last message: its revision, and its data, which is None if the key was removed or never written."""

    revision: int
    data: bytes | None


class _KvMessage(msgspec.Struct, frozen=True):
    seq: int
    data: bytes = b""


class _KvReply(msgspec.Struct, frozen=True):
    message: _KvMessage


_got = msgspec.json.Decoder(_KvReply)


class Bucket:
    """Reads and writes the entries of a bucket.

    All methods raise `Unavailable` if JetStream does not answer, and `PayloadTooLarge` for a value that is larger than
    NATS or the bucket takes.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._stream = f"KV_{name}"

    @property
    def max_value_bytes(self) -> int:
        """The largest value in bytes: the server's `max_payload` less the headers."""
        return self._connection.max_payload - HEADER_BYTES

    async def put(self, key: str, data: bytes, expected: int, *, ttl_seconds: int | None = None) -> int:
        """Replace the revision `expected` by a value, and return the new revision.

        The value expires after `ttl_seconds`, or never if that is None; the time-out of an earlier value does not
        carry over. Raises `WrongRevision` if the key has another revision.
        """
        headers = {EXPECTED_REVISION_HEADER: str(expected)}
        if ttl_seconds is not None:
            headers[TTL_HEADER] = f"{ttl_seconds}s"
        return await self._publish(key, data, headers)

    async def remove(self, key: str, expected: int, headers: Mapping[str, str] = MappingProxyType({})) -> int:
        """Replace the revision `expected` by a delete marker, and return the new revision.

        The marker tells mirrors of the removal, carries `headers`, and expires after two minutes. Raises
        `WrongRevision` as `put()` does.
        """
        headers = {
            **headers,
            EXPECTED_REVISION_HEADER: str(expected),
            KV_OPERATION_HEADER: "DEL",
            TTL_HEADER: f"{MARKER_SECONDS}s",
        }
        return await self._publish(key, b"", headers)

    async def read(self, key: str) -> Value:
        """Return a key's value from the stream's leader, which mirrors and replicas may not have yet."""
        value = await self.read_if_there(key)
        if value is None:
            raise Unavailable(f"the bucket {self._name} is not there; try again in a moment")
        return value

    async def read_if_there(self, key: str) -> Value | None:
        """Return a key's value as `read()` does, or None if the bucket does not exist."""
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
        """Log JetStream's reason for the operator, and return an error without it for peers."""
        log.warning("the bucket %s is refused: %s", self._name, error)
        return Unavailable(f"the bucket {self._name} is not available now; try again in a moment")
