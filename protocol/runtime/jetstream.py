"""JetStream's own protocol: requests to its API, and publishes that it acknowledges with a sequence.

Raw JSON instead of the library's context object, because the answers are then typed, the few subjects that a NATS user
must be permitted can be seen here, and each failure becomes one of three: the server refused (`JetStreamError`), the
revision was not the expected one (`WrongRevision`), or there was no answer (`Unavailable`, which leaves open whether
it was done).
"""

from typing import Any, TypeVar

import msgspec
import nats.errors

from protocol import codec
from protocol.errors import Internal, Unavailable
from protocol.runtime.nats import Connection

API = "$JS.API"
TIMEOUT_SECONDS = 2.0  # a request that was on its way when the server went down is never answered
STREAM_NOT_FOUND = 10059
MESSAGE_NOT_FOUND = 10037
SUBJECTS_OVERLAP = 10065
_WRONG_REVISION = (10071, 10164)  # with and without the sequence that was found
EXPECTED_REVISION_HEADER = "Nats-Expected-Last-Subject-Sequence"
TTL_HEADER = "Nats-TTL"
KV_OPERATION_HEADER = "KV-Operation"
MARKER_HEADER = "Nats-Marker-Reason"

T = TypeVar("T")


class _Fault(msgspec.Struct, frozen=True):
    code: int
    description: str = ""
    err_code: int = 0


class _Answer(msgspec.Struct, frozen=True):
    error: _Fault | None = None


class _Ack(msgspec.Struct, frozen=True):
    error: _Fault | None = None
    stream: str = ""
    seq: int = 0


class StreamState(msgspec.Struct, frozen=True):
    """What a stream holds; an empty one's first sequence is the next, or 0 where it has never held anything."""

    last_seq: int
    first_seq: int = 0


class StreamInfo(msgspec.Struct, frozen=True):
    """A stream's configuration as the server spells it, when it was created, and what it holds."""

    config: dict[str, Any]
    created: str
    state: StreamState


class JetStreamError(Exception):
    """JetStream refused a request; `code` is HTTP's, `err_code` its own, finer one."""

    def __init__(self, fault: _Fault) -> None:
        super().__init__(fault.description)
        self.code = fault.code
        self.err_code = fault.err_code


class WrongRevision(Exception):
    """Somebody else wrote the subject since the revision that this write was based on."""


_answers = msgspec.json.Decoder(_Answer)
_acks = msgspec.json.Decoder(_Ack)
_infos = msgspec.json.Decoder(StreamInfo)


async def request(connection: Connection, operation: str, decoder: msgspec.json.Decoder[T], **body: Any) -> T:
    """Ask JetStream's API: `request(connection, "STREAM.INFO.events", ...)`.

    Raises `JetStreamError` where it refuses, `Unavailable` where it does not answer or is not ready.
    """
    data = await _send(connection, f"{API}.{operation}", codec.encode(body) if body else b"")
    fault = codec.decode(_answers, data, Internal).error
    if fault is not None:
        raise _refusal(fault)
    return codec.decode(decoder, data, Internal)


async def stream_info(connection: Connection, stream: str) -> StreamInfo | None:
    """Return what the server knows of a stream, None where there is none. Raises as `request()` does."""
    try:
        return await request(connection, f"STREAM.INFO.{stream}", _infos)
    except JetStreamError as exc:
        if exc.err_code == STREAM_NOT_FOUND:
            return None
        raise


async def publish(connection: Connection, subject: str, payload: bytes, headers: dict[str, str]) -> int:
    """Store a message and return its sequence in the stream.

    Raises `WrongRevision` where an expected revision is not the present one, and as `request()` does. After
    `Unavailable` the message may or may not be stored.
    """
    ack = codec.decode(_acks, await _send(connection, subject, payload, headers), Internal)
    if ack.error is None and ack.seq:
        return ack.seq
    if ack.error is not None and ack.error.err_code in _WRONG_REVISION:
        raise WrongRevision(subject)
    raise _refusal(ack.error or _Fault(500, "the answer is not JetStream's"))


async def _send(connection: Connection, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> bytes:
    try:
        data: bytes = (await connection.request(subject, payload, TIMEOUT_SECONDS, headers)).data
    except TimeoutError as exc:
        raise Unavailable("JetStream does not answer; try again in a moment") from exc
    except nats.errors.NoRespondersError as exc:
        raise Unavailable("JetStream is not there yet; try again in a moment") from exc
    return data


def _refusal(fault: _Fault) -> JetStreamError | Unavailable:
    """Return what to raise; 503 is JetStream's word for "not ready": a leader is being elected, say."""
    return Unavailable(f"JetStream is not ready: {fault.description}") if fault.code == 503 else JetStreamError(fault)
