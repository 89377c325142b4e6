"""Frames of the native dialect: what crosses the WebSocket between a gateway and an application.

Text frames, one JSON object each; `type` decides. Unknown fields are ignored, so that either side may be newer.
"""

from typing import Annotated, Any, TypeAlias

import msgspec

from protocol.codec import require_shallow
from protocol.errors import InvalidFrame, InvalidRequest, PayloadTooLarge
from protocol.ids import MAX_REQUEST_ID_CHARS, check_printable

MAX_FRAME_ID_CHARS = 128
MAX_PROGRESS_TEXT_CHARS = 1000
MAX_PROGRESS_DATA_BYTES = 16 * 1024
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class ConnectionFrame(msgspec.Struct, frozen=True, tag="connection", rename="camel", omit_defaults=True):
    """First frame to a client: the id under which agents reach it."""

    client_id: str
    protocol_version: str


class AgentIdentity(msgspec.Struct, frozen=True):
    """Who sends a command: the `sub` of the agent's token."""

    id: str


class CommandFrame(msgspec.Struct, frozen=True, tag="command", rename="camel"):
    """A command for the client to execute. `timeout_ms` is what remains of the caller's deadline."""

    request_id: str
    target: str
    action: str | None
    parameters: msgspec.Raw
    timeout_ms: int
    agent: AgentIdentity


class CancelFrame(msgspec.Struct, frozen=True, tag="cancel", rename="camel"):
    """Nobody waits for this command any more; an answer to it will be dropped."""

    request_id: str
    reason: str


class AckFrame(msgspec.Struct, frozen=True, tag="ack"):
    """The frame that carried this id was accepted; an event with an id is stored."""

    id: str


class ErrorFrame(msgspec.Struct, frozen=True, tag="error", omit_defaults=True):
    """A frame of the client's was refused; `id` where it carried one, `details` as errors elsewhere have them."""

    code: str
    message: str
    id: str | None = None
    details: Any = None


class PongFrame(msgspec.Struct, frozen=True, tag="pong"):
    """The answer to `ping`, for clients that cannot see WebSocket pongs."""


class AppInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the application calls itself."""

    name: Annotated[str, msgspec.Meta(max_length=128)] = ""
    version: Annotated[str, msgspec.Meta(max_length=64)] = ""


class CapabilityFrame(msgspec.Struct, frozen=True, tag="capability"):
    """The whole list of what the client offers, accepted or refused as one."""

    capabilities: list[msgspec.Raw]
    app: AppInfo | None = None
    metadata: dict[str, Any] | None = None
    id: str | None = None


class MetadataFrame(msgspec.Struct, frozen=True, tag="metadata"):
    """New metadata, replacing the former."""

    metadata: dict[str, Any]
    id: str | None = None


class ClientFault(msgspec.Struct, frozen=True):
    """What went wrong in the application, in its own words."""

    message: str = "the application reported an error"
    code: str | int | None = None
    details: Any = None


class ResponseFrame(msgspec.Struct, frozen=True, tag="response", rename="camel"):
    """The answer to a command. Any `status` but `success` is an error; `error` may be a bare sentence."""

    request_id: str
    status: str
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: ClientFault | str | None = None


class ProgressFrame(msgspec.Struct, frozen=True, tag="progress", rename="camel"):
    """How far a command has come, of `total` where that is known. JSON has no NaN, and msgspec takes no infinity."""

    request_id: str
    progress: float
    total: float | None = None
    message: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class EventFrame(msgspec.Struct, frozen=True, tag="event"):
    """A fact that the application tells; with `id` it is acknowledged when stored."""

    event: _Name
    source: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: str | None = None


class AuthFrame(msgspec.Struct, frozen=True, tag="auth"):
    """A fresh token for the same subject, tenant and role."""

    token: str
    id: str | None = None


class PingFrame(msgspec.Struct, frozen=True, tag="ping"):
    """A client's own sign of life; answered by `pong`."""


ServerFrame: TypeAlias = ConnectionFrame | CommandFrame | CancelFrame | AckFrame | ErrorFrame | PongFrame
ClientFrame: TypeAlias = (
    CapabilityFrame | MetadataFrame | ResponseFrame | ProgressFrame | EventFrame | AuthFrame | PingFrame
)


def check_frame(frame: ClientFrame) -> ClientFrame:
    """Return the frame where all of it is within bounds.

    Raises `InvalidFrame` or `PayloadTooLarge` naming the field.
    """
    match frame:
        case CapabilityFrame(metadata=dict(metadata)) | MetadataFrame(metadata=metadata):
            require_shallow(metadata, "`metadata`", InvalidFrame)
        case ResponseFrame(error=ClientFault(details=details)):
            require_shallow(details, "`error.details`", InvalidFrame)
        case ProgressFrame():
            _require_small(frame)
        case _:
            pass
    match frame:
        case ResponseFrame(request_id=request_id) | ProgressFrame(request_id=request_id):
            _bounded(request_id, "requestId", MAX_REQUEST_ID_CHARS)
        case CapabilityFrame(id=str(ident)) | MetadataFrame(id=str(ident)) | EventFrame(id=str(ident)):
            _bounded(ident, "id", MAX_FRAME_ID_CHARS)
        case AuthFrame(id=str(ident)):
            _bounded(ident, "id", MAX_FRAME_ID_CHARS)
        case _:
            pass
    return frame


def fault_of(frame: ResponseFrame) -> ClientFault:
    """Return what a response with an error says, whichever form the application chose."""
    match frame.error:
        case ClientFault() as fault:
            return fault
        case str(message):
            return ClientFault(message)
        case None:
            return ClientFault()


def _require_small(frame: ProgressFrame) -> None:
    """Raise `PayloadTooLarge` for progress that says so much that it should be a result, or an event."""
    if frame.message is not None and len(frame.message) > MAX_PROGRESS_TEXT_CHARS:
        raise PayloadTooLarge(f"`message`: at most {MAX_PROGRESS_TEXT_CHARS} characters of progress are passed on")
    if isinstance(frame.data, msgspec.Raw) and len(memoryview(frame.data)) > MAX_PROGRESS_DATA_BYTES:
        raise PayloadTooLarge(f"`data`: at most {MAX_PROGRESS_DATA_BYTES} bytes of progress are passed on")


def _bounded(text: str, field: str, max_chars: int) -> None:
    try:
        check_printable(text, f"`{field}`", max_chars)
    except InvalidRequest as exc:
        raise InvalidFrame(exc.message) from exc
