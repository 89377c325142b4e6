"""Messages on NATS: commands and their responses, cancels, probes, events, changes of clients.

All are JSON, so that a NATS client in any language can take part. Unknown fields are ignored. Only in a command a near
miss of a known field is refused.
"""

import datetime
from functools import lru_cache
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from protocol import codec
from protocol.codec import EMPTY_OBJECT, WholeNumber, whole
from protocol.errors import BridgeError, ErrorBody, Internal, InvalidRequest, from_body
from protocol.ids import MAX_IDEMPOTENCY_KEY_CHARS, MAX_REQUEST_ID_CHARS, check_printable

MAX_PROBED = 256
PAST_DEADLINE_MS = 2000
MAX_UNIX_MS = 253_402_300_799_999  # the end of the year 9999
_WHOLE = (int, type(None))
_Short = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]

AUTHORIZATION_HEADER = "Authorization"
ERROR_HEADER = "Nats-Service-Error"  # ADR-32
ERROR_CODE_HEADER = "Nats-Service-Error-Code"  # ADR-32
MESSAGE_ID_HEADER = "Nats-Msg-Id"
PROGRESS_HEADER = "Agentbridge-Progress"


class CommandFields(
    msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True, forbid_unknown_fields=True
):
    """A caller's command. `timeout_ms` is the time left; `sent_at` is the caller's clock in Unix milliseconds."""

    target: _Short
    action: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    parameters: msgspec.Raw = EMPTY_OBJECT
    request_id: str | None = None
    timeout_ms: WholeNumber | None = None
    idempotency_key: str | None = None
    sent_at: WholeNumber | None = None


class CommandRequest(
    CommandFields, frozen=True, tag_field="op", tag="call", rename="camel", omit_defaults=True, kw_only=True
):
    """A command for one client on NATS.

    `caller_request_id` is how the caller knows a command which was given a `request_id` of its own on the way, so that
    it is not taken for another one that came under the same id. `probed` promises that the caller asks after the
    command every second: one that nobody asks after for eight seconds is withdrawn.
    """

    caller_request_id: str | None = None
    probed: bool = False


class _NewerCommand(CommandRequest, frozen=True, tag="call", forbid_unknown_fields=False):
    """A command of a newer caller, which may have fields that we do not know."""


F = TypeVar("F", bound=CommandFields)


class CancelRequest(
    msgspec.Struct, frozen=True, tag_field="op", tag="cancel", rename="camel", omit_defaults=True, kw_only=True
):
    """Cancels a command, because its caller no longer waits."""

    request_id: str
    reason: Annotated[str, msgspec.Meta(max_length=256)] = "the caller cancelled"


class ProbeRequest(msgspec.Struct, frozen=True, tag_field="op", tag="probe", rename="camel", kw_only=True):
    """Asks for the state of the caller's commands."""

    request_ids: Annotated[list[str], msgspec.Meta(max_length=MAX_PROBED)]


Operation: TypeAlias = CommandRequest | CancelRequest | ProbeRequest


class CommandResponse(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """The one terminal answer to a command. `duration_ms` is the time at the gateway, from arrival to answer.

    `replayed`: this is the answer to an earlier request with the same idempotency key.
    """

    request_id: str
    status: str
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: ErrorBody | None = None
    client_id: str | None = None
    duration_ms: int
    replayed: bool = False

    def value(self) -> msgspec.Raw:
        """Return the application's result, or raise the response's error."""
        if self.error is not None:
            raise from_body(self.error)
        return self.result if isinstance(self.result, msgspec.Raw) else msgspec.Raw(b"null")


class ProgressMessage(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """A command's progress, for a caller that asked for it. `seq` counts from 1. A missing number is a lost message."""

    request_id: str
    seq: int
    progress: float
    total: float | None = None
    message: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    client_id: str | None = None


class CancelResponse(msgspec.Struct, frozen=True, rename="camel"):
    """Whether the command was still in flight when the cancel came."""

    cancelled: bool


class ProbeResponse(msgspec.Struct, frozen=True, rename="camel"):
    """The probed commands: in flight, ended (with the answer, which may have been lost before), or unknown."""

    in_flight: list[str]
    outcomes: list[msgspec.Raw]
    unknown: list[str]


class ErrorResponse(msgspec.Struct, frozen=True, rename="camel"):
    """The refusal of a request other than a command."""

    error: ErrorBody
    status: str = "error"


class EventMessage(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """An application's event. `user` is the `sub` of its token, `at` RFC 3339 in UTC."""

    event: str
    client_id: str
    user: str
    app: str
    at: str
    source: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: str | None = None


class ClientChange(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """A client has connected, changed or gone. `revision` is the session's own counter.

    With the reason `renamed`, `app` is the application's former name.
    """

    change: str
    client_id: str
    user: str
    app: str
    at: str
    revision: int
    reason: str | None = None


class _Op(msgspec.Struct):
    op: Any = "call"


_call_decoder = msgspec.json.Decoder(CommandRequest)
_newer_decoder: msgspec.json.Decoder[CommandRequest] = msgspec.json.Decoder(_NewerCommand)
_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    "cancel": msgspec.json.Decoder(CancelRequest),
    "probe": msgspec.json.Decoder(ProbeRequest),
}
_op_decoder = msgspec.json.Decoder(_Op)
_OUR_CALL = b'{"op":"call",'  # how `encode` writes it; the decoder still refuses a second `op` with another value
_response_decoder = msgspec.json.Decoder(CommandResponse)
_probe_decoder = msgspec.json.Decoder(ProbeResponse)
_progress_decoder = msgspec.json.Decoder(ProgressMessage)


def decode_operation(data: bytes) -> Operation:
    """Decode the body of a message on a command subject; `op` defaults to `call`. Raises `InvalidRequest`."""
    if data.startswith(_OUR_CALL) or b'"op"' not in data:
        return check_command(_decode_call(data))
    op = codec.decode(_op_decoder, data).op
    if op == "call":
        return check_command(_decode_call(data))
    decoder = _decoders.get(op) if isinstance(op, str) else None
    if decoder is None:
        raise InvalidRequest("`op`: must be call, cancel or probe")
    operation: Operation = codec.decode(decoder, data)
    return check_operation(operation)


def _decode_call(data: bytes) -> CommandRequest:
    """Decode a command. Unknown fields of a newer caller are ignored, except near misses of known ones."""
    command = codec.decode_newer(_call_decoder, _newer_decoder, data, InvalidRequest)
    if command.__class__ is CommandRequest:
        return command
    return CommandRequest(**msgspec.structs.asdict(command))


def check_operation(operation: Operation) -> Operation:
    """Check the rules that an operation's type cannot express. Raises `InvalidRequest` that names the field."""
    match operation:
        case CommandRequest():
            return check_command(operation)
        case CancelRequest(request_id=request_id):
            check_printable(request_id, "`requestId`", MAX_REQUEST_ID_CHARS)
        case ProbeRequest():
            pass
    return operation


def check_command(command: CommandRequest) -> CommandRequest:
    """Check a command's ids, parameters and timeout. Raises `InvalidRequest` that names the field."""
    if command.caller_request_id is not None:
        check_printable(command.caller_request_id, "`callerRequestId`", MAX_REQUEST_ID_CHARS)
    return check_fields(command)


def check_fields(command: F) -> F:
    """Check the ids, parameters and numbers of a command. Raises `InvalidRequest` that names the field."""
    if command.request_id is not None:
        check_printable(command.request_id, "`requestId`", MAX_REQUEST_ID_CHARS)
    if command.idempotency_key is not None:
        check_printable(command.idempotency_key, "`idempotencyKey`", MAX_IDEMPOTENCY_KEY_CHARS)
    if not codec.is_object(command.parameters):
        raise InvalidRequest("`parameters`: expected `object`")
    if command.timeout_ms is not None and not 0 < command.timeout_ms <= MAX_UNIX_MS:
        raise InvalidRequest(f"`timeoutMs`: must be greater than 0, and at most {MAX_UNIX_MS}")
    if command.sent_at is not None and not 0 <= command.sent_at <= MAX_UNIX_MS:
        raise InvalidRequest(f"`sentAt`: must be from 0 to {MAX_UNIX_MS}")
    if type(command.timeout_ms) in _WHOLE and type(command.sent_at) in _WHOLE:
        return command
    return _with_whole_numbers(command)


def _with_whole_numbers(command: F) -> F:
    """Turn whole numbers such as 1500.0 into integers. Raises `InvalidRequest` for a fraction."""
    timeout_ms = None if command.timeout_ms is None else whole(command.timeout_ms, "`timeoutMs`")
    sent_at = None if command.sent_at is None else whole(command.sent_at, "`sentAt`")
    return msgspec.structs.replace(command, timeout_ms=timeout_ms, sent_at=sent_at)


def is_past_deadline(command: CommandFields, timeout_ms: int, unix_ms: float) -> bool:
    """Tell whether a command's deadline, `sentAt` plus its timeout, has passed by this clock."""
    if command.sent_at is None:
        return False
    return unix_ms - command.sent_at - timeout_ms > PAST_DEADLINE_MS


def decode_response(data: bytes) -> CommandResponse:
    """Decode a gateway's answer to a call. Raises `Internal` if it is not one."""
    return codec.decode(_response_decoder, data, Internal)


def decode_progress(data: bytes) -> ProgressMessage:
    """Decode a progress message. Raises `Internal` if it is not one."""
    return codec.decode(_progress_decoder, data, Internal)


def decode_probe_response(data: bytes) -> ProbeResponse:
    """Decode a gateway's answer to a probe. Raises `InvalidRequest` if it is not one."""
    return codec.decode(_probe_decoder, data)


def failure(request_id: str, error: BridgeError, client_id: str | None = None, duration_ms: int = 0) -> CommandResponse:
    """Return a response with an error."""
    return CommandResponse(
        request_id=request_id, status="error", error=error.body(), client_id=client_id, duration_ms=duration_ms
    )


def error_headers(error: ErrorBody) -> dict[str, str]:
    """Return the headers that mark an error for any NATS micro client (ADR-32)."""
    return {ERROR_CODE_HEADER: error.code, ERROR_HEADER: header_text(error.message)}


def header_text(text: str) -> str:
    """Return text in a form that a NATS header allows: one line, printable ASCII, 200 characters at most."""
    if text.isascii() and text.isprintable():  # the usual case; going through the characters takes 10 µs
        return text[:200]
    return "".join(char if " " <= char <= "~" else "?" for char in text[:200])


def timestamp(unix_seconds: float) -> str:
    """Return an instant as RFC 3339 in UTC with milliseconds, the form of `at` and `connectedAt`."""
    seconds, milliseconds = divmod(int(unix_seconds * 1000), 1000)
    return f"{_second(seconds)}.{milliseconds:03}Z"


@lru_cache(maxsize=64)
def _second(unix_seconds: int) -> str:
    """Return an instant without its milliseconds. It is cached, because thousands of messages have the same one."""
    return datetime.datetime.fromtimestamp(unix_seconds, datetime.UTC).isoformat()[:-6]
