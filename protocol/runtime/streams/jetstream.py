"""JetStream's own protocol: requests to its API, and publishes that it acknowledges with a sequence.

Raw JSON instead of the library's context object, because the answers are then typed, the few subjects that a NATS user
must be permitted can be seen here, and each failure becomes one of four: the server refused (`JetStreamError`), the
stream has no room or is broken (`StoreRefused`: nothing was stored), the revision was not the expected one
(`WrongRevision`), or there was no answer (`Unavailable`, which leaves open whether it was done).
"""

import enum
from typing import Any, TypeVar

import msgspec
import nats.errors

from protocol import codec
from protocol.errors import BridgeError, Internal, Unavailable
from protocol.runtime.nats.connection import Connection

API = "$JS.API"
TIMEOUT_SECONDS = 2.0  # a request that was on its way when the server went down is never answered
STREAM_NOT_FOUND = 10059
MESSAGE_NOT_FOUND = 10037
SUBJECTS_OVERLAP = 10065
MESSAGE_TOO_LARGE = 10054
_TOO_LARGE = (MESSAGE_TOO_LARGE, 10097)  # as a whole, and its headers
NO_STORAGE = 10047  # at creation: what the stream reserves is not there
_NOT_LEADER = 10009  # passes by itself, as a 503 does
_NO_ROOM = (10002, 10023, 10028, 10077)  # of the account, of the server, of the stream; some are told with 503
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


class _ApiReply(msgspec.Struct, frozen=True):
    error: _Fault | None = None


class _Ack(msgspec.Struct, frozen=True):
    error: _Fault | None = None
    stream: str = ""
    seq: int = 0


class StreamState(msgspec.Struct, frozen=True):
    """What a stream holds; an empty one's first sequence is the next, or 0 where it has never held anything."""

    last_seq: int
    first_seq: int = 0
    messages: int = 0
    bytes: int = 0


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


class StoreRefused(Unavailable):
    """A stream is full, or cannot write: nothing was stored. The operator is told of it by `Connection.stores`."""


class WrongRevision(Exception):
    """Somebody else wrote the subject since the revision that this write was based on."""


_answers = msgspec.json.Decoder(_ApiReply)
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


async def publish(
    connection: Connection, subject: str, payload: bytes, headers: dict[str, str], *, stream: str = ""
) -> int:
    """Store a message and return its sequence in the stream, whose name is `stream` if that is known.

    Raises `WrongRevision` where an expected revision is not the present one, `StoreRefused` if the stream has no room,
    and as `request()` does. After `Unavailable` of another kind the message may or may not be stored.
    """
    try:
        data = await _send(connection, subject, payload, headers)
    except _Silence:
        if stream:
            connection.stores.silent(stream, connection.unbroken_seconds())
        raise
    ack = codec.decode(_acks, data, Internal)
    if ack.error is None and ack.seq:
        connection.stores.took(ack.stream)
        return ack.seq
    if ack.error is None:
        raise JetStreamError(_Fault(500, "the answer is not JetStream's"))
    fault = ack.error
    if fault.err_code in _WRONG_REVISION:
        connection.stores.took(ack.stream)  # it would have taken another
        raise WrongRevision(subject)
    if is_refusal(fault.code, fault.err_code):
        connection.stores.refused(ack.stream or stream, fault.err_code, fault.description)
        raise StoreRefused(f"its store has no room ({fault.description}); try again later")
    raise _refusal(fault)


def read_ack(connection: Connection, data: bytes) -> str:
    """Return which stream says that it has stored a message; nothing if it has not, or if no stream has answered.

    For those who publish without waiting; a stray responder may answer anything.
    """
    ack = _read_ack(connection, data)
    return ack.stream if ack is not None and ack.error is None else ""


class Stored(enum.Enum):
    """Whether a stream has a message: for `NEVER`, it would refuse it each time."""

    YES = 1
    NO = 2
    NEVER = 3


def read_stored(connection: Connection, data: bytes, stream: str) -> Stored:
    """Return what an answer says of a message that a stream is to keep; its name may go on behind `stream`."""
    ack = _read_ack(connection, data)
    if ack is None or not ack.stream.startswith(stream):
        return Stored.NO
    if ack.error is None:
        return Stored.YES
    return Stored.NEVER if ack.error.err_code in _TOO_LARGE else Stored.NO


def _read_ack(connection: Connection, data: bytes) -> _Ack | None:
    """Return an acknowledgement or a refusal, and note it for the operator; None for anything else."""
    try:
        ack = codec.decode(_acks, data)
    except BridgeError:
        return None
    if ack.error is None:
        if not ack.seq:
            return None
        connection.stores.took(ack.stream)
    elif is_refusal(ack.error.code, ack.error.err_code):
        connection.stores.refused(ack.stream, ack.error.err_code, ack.error.description)
    else:
        connection.stores.refused_one(ack.stream, ack.error.description)
    return ack


def is_refusal(code: int, err_code: int) -> bool:
    """Tell whether an error of JetStream means that the stream cannot take messages, whatever the message."""
    return err_code in _NO_ROOM or (code >= 500 and code != 503 and err_code != _NOT_LEADER)


class NoStream(Unavailable):
    """Nobody keeps what is published on a subject, or nobody serves JetStream's API."""


class _Silence(Unavailable):
    """There was no answer in time."""


async def _send(connection: Connection, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> bytes:
    try:
        data: bytes = (await connection.request(subject, payload, TIMEOUT_SECONDS, headers)).data
    except TimeoutError as exc:
        raise _Silence("JetStream does not answer; try again in a moment") from exc
    except nats.errors.NoRespondersError as exc:
        raise NoStream("JetStream is not there yet; try again in a moment") from exc
    return data


def _refusal(fault: _Fault) -> JetStreamError | Unavailable:
    """Return what to raise; 503 is mostly JetStream's word for "not ready": a leader is being elected, say."""
    is_passing = fault.code == 503 and fault.err_code not in _NO_ROOM
    return Unavailable(f"JetStream is not ready: {fault.description}") if is_passing else JetStreamError(fault)
