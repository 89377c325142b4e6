"""Frames of the native dialect, between a gateway and an application.

Each is a text frame with one JSON object; `type` names its kind. Unknown fields are ignored, so that either side may be
newer.
"""

from typing import Annotated, Any, TypeAlias, assert_never

import msgspec

from protocol.codec import require_shallow, require_usual_numbers
from protocol.errors import InvalidFrame, InvalidRequest, PayloadTooLarge
from protocol.ids import MAX_REQUEST_ID_CHARS, check_printable

MAX_FRAME_ID_CHARS = 128
MAX_PROGRESS_TEXT_CHARS = 1000
MAX_PROGRESS_DATA_BYTES = 16 * 1024
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class ConnectionLimits(msgspec.Struct, frozen=True, rename="camel"):
    """The limits of a client: the size of its largest message, and the silence in seconds after which it is pinged."""

    max_message_bytes: int
    ping_interval_seconds: float


class ConnectionFrame(msgspec.Struct, frozen=True, tag="connection", rename="camel", omit_defaults=True):
    """First frame to a client: the id under which agents reach it.

    The other fields are for clients that ask to resume. `resumed` tells a client with a resume token whether its
    session goes on. `awaiting` lists the session's commands without an answer.
    """

    client_id: str
    protocol_version: str
    limits: ConnectionLimits
    resume_token: str | None = None
    resumed: bool | None = None
    awaiting: list[str] | None = None


class AgentIdentity(msgspec.Struct, frozen=True, omit_defaults=True):
    """The sender of a command: the `sub` of the agent's token, and its `name` claim."""

    id: str
    name: str | None = None


class CommandFrame(msgspec.Struct, frozen=True, tag="command", rename="camel"):
    """A command for the client to execute. `timeout_ms` is the time left until the caller's deadline."""

    request_id: str
    target: str
    action: str | None
    parameters: msgspec.Raw
    timeout_ms: int
    agent: AgentIdentity


class CancelFrame(msgspec.Struct, frozen=True, tag="cancel", rename="camel"):
    """Nobody waits for this command any more. An answer to it will be dropped."""

    request_id: str
    reason: str


class AckFrame(msgspec.Struct, frozen=True, tag="ack"):
    """The frame with this id was accepted. If it was an event, the event is stored."""

    id: str


class ErrorFrame(msgspec.Struct, frozen=True, tag="error", rename="camel", omit_defaults=True):
    """A frame of the client was refused. `id` is the frame's, if it had one; `details` are those of the error.

    `request_id` names the command that the refused frame would have answered.
    """

    code: str
    message: str
    id: str | None = None
    details: Any = None
    request_id: str | None = None


class ActiveAgent(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """An agent with a command at this client within the last minute. `since` is the time of its arrival (RFC 3339)."""

    id: str
    in_flight: int
    since: str
    name: str | None = None


class AgentsFrame(msgspec.Struct, frozen=True, tag="agents"):
    """The agents that work at this client now. It is sent only to clients that ask for it in `wants`."""

    agents: list[ActiveAgent]


class PongFrame(msgspec.Struct, frozen=True, tag="pong"):
    """The answer to `ping`, for clients that cannot see WebSocket pongs."""


class AppInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """The application's own name and version."""

    name: Annotated[str, msgspec.Meta(max_length=128)] = ""
    version: Annotated[str, msgspec.Meta(max_length=64)] = ""


class CapabilityFrame(msgspec.Struct, frozen=True, tag="capability"):
    """The client's complete list of capabilities. Unusable ones are left out, and the others are registered.

    If the frame has an `id` and a `timestamp` of any type, the client gets commands in the form of the original
    protocol's document. `wants` lists further frames for the client, such as `agents`. If it is absent, the former list
    stays in force.
    """

    capabilities: list[msgspec.Raw]
    app: AppInfo | None = None
    metadata: dict[str, Any] | None = None
    id: str | None = None
    timestamp: Any = None
    wants: list[str] | None = None


class MetadataFrame(msgspec.Struct, frozen=True, tag="metadata"):
    """New metadata. It replaces the former metadata as a whole."""

    metadata: dict[str, Any]
    id: str | None = None


class ClientFault(msgspec.Struct, frozen=True):
    """An error that the application reports for a command. Message and code are the application's own."""

    message: str = "the application reported an error"
    code: str | int | None = None
    details: Any = None


class ResponseFrame(msgspec.Struct, frozen=True, tag="response", rename="camel"):
    """The answer to a command. Every `status` except `success` is an error. `error` may be a bare sentence.

    `confirmed` is `user` if the application has asked its user. Other values are ignored.
    """

    request_id: str
    status: str
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: ClientFault | str | None = None
    confirmed: Any = None


class ProgressFrame(msgspec.Struct, frozen=True, tag="progress", rename="camel"):
    """A command's progress, out of `total` if that is known. JSON has no NaN, and msgspec refuses infinity."""

    request_id: str
    progress: float
    total: float | None = None
    message: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class EventFrame(msgspec.Struct, frozen=True, tag="event"):
    """An event of the application. If it has an `id`, it is acknowledged when it is stored."""

    event: _Name
    source: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: str | None = None


class AuthFrame(msgspec.Struct, frozen=True, tag="auth"):
    """A fresh token for the same subject, tenant and role."""

    token: str
    id: str | None = None


class StopFrame(msgspec.Struct, frozen=True, tag="stop", rename="camel"):
    """The user stops one agent, or all. Its commands are cancelled, and new ones are refused for `seconds`."""

    agent_id: _Name | None = None
    seconds: Annotated[float, msgspec.Meta(ge=0)] | None = None
    id: str | None = None


class AllowFrame(msgspec.Struct, frozen=True, tag="allow", rename="camel"):
    """The user lets a stopped agent, or all of them, work again."""

    agent_id: _Name | None = None
    id: str | None = None


class UnknownFrame(msgspec.Struct, frozen=True, tag="unknown", rename="camel"):
    """The client never got this command, but its session waits for the answer. So the gateway sends it again."""

    request_id: str
    id: str | None = None


class PingFrame(msgspec.Struct, frozen=True, tag="ping"):
    """A client's own sign of life, answered by `pong`."""


ServerFrame: TypeAlias = ConnectionFrame | CommandFrame | CancelFrame | AckFrame | ErrorFrame | AgentsFrame | PongFrame
ClientFrame: TypeAlias = (
    CapabilityFrame
    | MetadataFrame
    | ResponseFrame
    | ProgressFrame
    | EventFrame
    | StopFrame
    | AllowFrame
    | AuthFrame
    | UnknownFrame
    | PingFrame
)


def check_frame(frame: ClientFrame) -> ClientFrame:
    """Return the frame if all its fields are within bounds.

    Raises `InvalidFrame` or `PayloadTooLarge` that names the field.
    """
    match frame:
        case ResponseFrame():
            _bounded(frame.request_id, "requestId", MAX_REQUEST_ID_CHARS)
            _require_usual(frame.result, "`result`")
            if isinstance(frame.error, ClientFault):
                require_shallow(frame.error.details, "`error.details`", InvalidFrame)
        case ProgressFrame():
            _bounded(frame.request_id, "requestId", MAX_REQUEST_ID_CHARS)
            _require_small(frame)
            _require_usual(frame.data, "`data`")
        case EventFrame():
            _require_good_id(frame.id)
            _require_usual(frame.data, "`data`")
        case CapabilityFrame() | MetadataFrame():
            _require_good_id(frame.id)
            require_shallow(frame.metadata, "`metadata`", InvalidFrame)
        case AuthFrame() | StopFrame() | AllowFrame():
            _require_good_id(frame.id)
        case UnknownFrame():
            _bounded(frame.request_id, "requestId", MAX_REQUEST_ID_CHARS)
            _require_good_id(frame.id)
        case PingFrame():
            pass
        case _:
            assert_never(frame)
    return frame


def fault_of(frame: ResponseFrame) -> ClientFault:
    """Return the error in a response. The application may send it in several forms."""
    match frame.error:
        case ClientFault() as fault:
            return fault
        case str(message):
            return ClientFault(message)
        case None:
            return ClientFault()


def _require_small(frame: ProgressFrame) -> None:
    """Raise `PayloadTooLarge` for large progress. Such data belongs in a result or an event."""
    if frame.message is not None and len(frame.message) > MAX_PROGRESS_TEXT_CHARS:
        raise PayloadTooLarge(f"`message`: at most {MAX_PROGRESS_TEXT_CHARS} characters of progress are passed on")
    if isinstance(frame.data, msgspec.Raw) and len(memoryview(frame.data)) > MAX_PROGRESS_DATA_BYTES:
        raise PayloadTooLarge(f"`data`: at most {MAX_PROGRESS_DATA_BYTES} bytes of progress are passed on")


def _require_usual(value: msgspec.Raw | msgspec.UnsetType, where: str) -> None:
    """Raise `InvalidFrame` for a number that many agents could not read, such as 1e400."""
    if isinstance(value, msgspec.Raw):
        require_usual_numbers(value, where, InvalidFrame)


def _require_good_id(ident: str | None) -> None:
    if ident is not None:
        _bounded(ident, "id", MAX_FRAME_ID_CHARS)


def _bounded(text: str, field: str, max_chars: int) -> None:
    try:
        check_printable(text, f"`{field}`", max_chars)
    except InvalidRequest as exc:
        raise InvalidFrame(exc.message) from exc
