"""JetStream's own protocol: requests to its API, and publishes that it acknowledges with a sequence.

We send the JSON ourselves instead of using nats-py's context object. Then answers are typed, and this file shows the
few subjects that a NATS user must be permitted. Each failure is one of four:

- `JetStreamError`: the server refused the request.
- `StoreRefused`: the stream is full or cannot write. Nothing was stored.
- `WrongRevision`: the key does not have the expected revision. Nothing was stored.
- `Unavailable`: no answer came. The message may or may not be stored.
"""

import enum
from typing import Any, TypeVar

import msgspec
import nats.errors

from protocol import codec
from protocol.errors import BridgeError, Internal, Unavailable
from protocol.runtime.nats.connection import Connection

API = "$JS.API"
TIMEOUT_SECONDS = 2.0  # a server that goes down never answers the requests that it has received
STREAM_NOT_FOUND = 10059
MESSAGE_NOT_FOUND = 10037
SUBJECTS_OVERLAP = 10065
MESSAGE_TOO_LARGE = 10054
_TOO_LARGE = (MESSAGE_TOO_LARGE, 10097)  # the whole message, its headers
NO_STORAGE = 10047  # at creation: the server has less free storage than the stream reserves
_NOT_LEADER = 10009  # passes by itself, as a 503 does
_NO_ROOM = (10002, 10023, 10028, 10077)  # limits of the account, the server, the stream; some come with code 503
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
    """A stream's sequences and size. If it is empty, `first_seq` is the next sequence; if it is new, 0."""

    last_seq: int
    first_seq: int = 0
    messages: int = 0
    bytes: int = 0


class StreamInfo(msgspec.Struct, frozen=True):
    """A stream's configuration with the server's names, its creation time and its state."""

    config: dict[str, Any]
    created: str
    state: StreamState


class JetStreamError(Exception):
    """JetStream refused a request. `code` is an HTTP status, `err_code` JetStream's own number."""

    def __init__(self, fault: _Fault) -> None:
        super().__init__(fault.description)
        self.code = fault.code
        self.err_code = fault.err_code


class StoreRefused(Unavailable):
    """A stream is full or cannot write, so nothing was stored. `Connection.stores` reports it to the operator."""


class WrongRevision(Exception):
    """The subject has a newer message than the expected revision, because another process wrote it."""


_answers = msgspec.json.Decoder(_ApiReply)
_acks = msgspec.json.Decoder(_Ack)
_infos = msgspec.json.Decoder(StreamInfo)


async def request(connection: Connection, operation: str, decoder: msgspec.json.Decoder[T], **body: Any) -> T:
    """Ask JetStream's API: `request(connection, "STREAM.INFO.events", ...)`.

    Raises `JetStreamError` if it refuses, `Unavailable` if it does not answer within two seconds or is not ready.
    """
    data = await _send(connection, f"{API}.{operation}", codec.encode(body) if body else b"")
    fault = codec.decode(_answers, data, Internal).error
    if fault is not None:
        raise _refusal(fault)
    return codec.decode(decoder, data, Internal)


async def stream_info(connection: Connection, stream: str) -> StreamInfo | None:
    """Return a stream's configuration and state, or None if it does not exist. Raises as `request()` does."""
    try:
        return await request(connection, f"STREAM.INFO.{stream}", _infos)
    except JetStreamError as exc:
        if exc.err_code == STREAM_NOT_FOUND:
            return None
        raise


async def publish(
    connection: Connection, subject: str, payload: bytes, headers: dict[str, str], *, stream: str = ""
) -> int:
    """Store a message and return its sequence in the stream. Pass the stream's name if you know it.

    Raises `WrongRevision` if the expected revision is not the present one, `StoreRefused` if the stream has no room,
    and as `request()` does. After any other `Unavailable` the message may or may not be stored.
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
        # The stream works: it only refuses this revision.
        connection.stores.took(ack.stream)
        raise WrongRevision(subject)
    if is_refusal(fault.code, fault.err_code):
        connection.stores.refused(ack.stream or stream, fault.err_code, fault.description)
        raise StoreRefused(f"its store has no room ({fault.description}); try again later")
    raise _refusal(fault)


def read_ack(connection: Connection, data: bytes) -> str:
    """Return the name of the stream that has stored a message; "" if it was refused or the answer is no stream's.

    It is for messages that were published without waiting, whose answer may come from any stray responder.
    """
    ack = _read_ack(connection, data)
    return ack.stream if ack is not None and ack.error is None else ""


class Stored(enum.Enum):
    """Whether a stream has stored a message. `NEVER`: the message is too large, so sending it again cannot help."""

    YES = 1
    NO = 2
    NEVER = 3


def read_stored(connection: Connection, data: bytes, stream: str) -> Stored:
    """Tell from an answer whether a message was stored by a stream with a name that begins with `stream`."""
    ack = _read_ack(connection, data)
    if ack is None or not ack.stream.startswith(stream):
        return Stored.NO
    if ack.error is None:
        return Stored.YES
    return Stored.NEVER if ack.error.err_code in _TOO_LARGE else Stored.NO


def _read_ack(connection: Connection, data: bytes) -> _Ack | None:
    """Decode an acknowledgement or a refusal, and report it to `connection.stores`; None for anything else."""
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
    """Tell whether JetStream's error means that the stream takes no message at all."""
    return err_code in _NO_ROOM or (code >= 500 and code != 503 and err_code != _NOT_LEADER)


class NoStream(Unavailable):
    """No stream captures the subject, or no server has JetStream."""


class _Silence(Unavailable):
    """No answer came in time."""


async def _send(connection: Connection, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> bytes:
    try:
        data: bytes = (await connection.request(subject, payload, TIMEOUT_SECONDS, headers)).data
    except TimeoutError as exc:
        raise _Silence("JetStream does not answer; try again in a moment") from exc
    except nats.errors.NoRespondersError as exc:
        raise NoStream("JetStream is not there yet; try again in a moment") from exc
    return data


def _refusal(fault: _Fault) -> JetStreamError | Unavailable:
    """Return the error to raise."""
    # 503 mostly means "not ready", while a leader is elected for example.
    is_passing = fault.code == 503 and fault.err_code not in _NO_ROOM
    return Unavailable(f"JetStream is not ready: {fault.description}") if is_passing else JetStreamError(fault)
