"""The protocol's own JSON frames, as the native dialect has them bare and others within their envelopes."""

from collections.abc import Callable
from typing import Any

import msgspec

from gateway.dialects.dialect import Clock, CommandQueue, Dialect, Farewell, MessageIds
from gateway.dialects.unreadable import fields_of
from protocol import PROTOCOL_VERSION, codec
from protocol.errors import InvalidFrame, InvalidRequest
from protocol.frames import (
    MAX_FRAME_ID_CHARS,
    CapabilityFrame,
    ClientFrame,
    ConnectionFrame,
    ConnectionLimits,
    ServerFrame,
    check_frame,
)
from protocol.ids import MAX_REQUEST_ID_CHARS, check_printable
from protocol.records import MAX_CAPABILITIES


class Identified(msgspec.Struct, rename="camel"):
    """The type and the ids of a message, as far as they can be read; each may be of a wrong type."""

    type: Any = None
    id: Any = None
    request_id: Any = None
    snake_case: Any = msgspec.field(default=None, name="request_id")
    correlation_id: Any = None


class _Offered(msgspec.Struct):
    type: Any = None
    id: Any = None
    actions: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_offered_decoder = msgspec.json.Decoder(_Offered)
_id_decoder = msgspec.json.Decoder(Identified)
decoder: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)


class JsonFrames:
    """The common part of the dialects whose frames are bare JSON objects."""

    entry = None
    heartbeat = None

    @property
    def documented(self) -> Callable[[CapabilityFrame, Clock], Dialect] | None:
        """None: there is one form."""
        return None

    @property
    def queue(self) -> CommandQueue | None:
        """None: commands are sent at once."""
        return None

    def opening(self, client_id: str, limits: ConnectionLimits) -> tuple[bytes]:
        """Return the `connection` frame."""
        return (codec.encode(ConnectionFrame(client_id, PROTOCOL_VERSION, limits)),)

    def identify(self, data: bytes) -> MessageIds:
        """Return the `id` of a refused frame, and the `requestId` of a refused response."""
        return ids_of(data)

    def encode(self, frame: ServerFrame) -> bytes | None:
        """Return the bytes of a text frame."""
        return codec.encode(frame)

    def ping(self) -> None:
        """Leave it to the WebSocket: RFC 6455 section 5.5.2."""

    def close(self, code: int, reason: str) -> Farewell:
        """Close by the code as it is; the closing handshake says everything."""
        return Farewell((), code, reason)


def read_frame(data: bytes) -> ClientFrame:
    """Return the frame of a JSON object. Raises `InvalidFrame` or `PayloadTooLarge`, naming the field."""
    return check_frame(codec.decode(decoder, data, InvalidFrame))


def component_ids(frame: CapabilityFrame) -> frozenset[str]:
    """Return the good ids of the components in a list; other faults are found later."""
    return frozenset(filter(None, map(_component_id, frame.capabilities[:MAX_CAPABILITIES])))


def _component_id(raw: msgspec.Raw) -> str:
    try:
        found = codec.decode(_offered_decoder, codec.raw_bytes(raw), InvalidFrame)
    except InvalidFrame:
        return ""
    is_component = found.type == "component" or found.actions is not msgspec.UNSET
    return found.id if is_component and isinstance(found.id, str) else ""


def identified(data: bytes) -> Identified:
    """Return the type and the ids of a message, also if it is not whole."""
    try:
        return codec.decode(_id_decoder, data, InvalidFrame)
    except InvalidFrame:
        return msgspec.convert(fields_of(data), Identified)


def ids_of(data: bytes, kind: str | None = None) -> MessageIds:
    """Return the `id` of a refused frame, and the `requestId` of a response, or its `request_id`.

    It is a response by its `type`, or by `kind`.
    """
    found = identified(data)
    is_answer = (found.type if kind is None else kind) == "response"
    named = found.snake_case if found.request_id is None else found.request_id
    answered = printable(named, MAX_REQUEST_ID_CHARS) if is_answer else None
    return MessageIds(printable(found.id, MAX_FRAME_ID_CHARS), () if answered is None else (answered,))


def printable(value: Any, max_chars: int) -> str | None:
    """Return an id that can be told back; None for anything else."""
    try:
        return check_printable(value, "the id", max_chars) if isinstance(value, str) else None
    except InvalidRequest:
        return None
