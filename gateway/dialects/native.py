"""The native dialect: frames are JSON objects in text frames, and so are our messages; hardly anything to translate."""

import contextlib

import msgspec

from protocol import codec
from protocol.errors import InvalidFrame, InvalidRequest
from protocol.frames import MAX_FRAME_ID_CHARS, ClientFrame, ServerFrame, check_frame
from protocol.ids import check_printable


class _Identified(msgspec.Struct):
    id: str | None = None


_id_decoder = msgspec.json.Decoder(_Identified)
_decoder: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)


def decode(data: bytes, *, text: bool) -> ClientFrame:
    """Return what a client's frame says. Raises `InvalidFrame` with a sentence that names the field."""
    if not text:
        raise InvalidFrame("binary frames are not understood: send JSON in text frames")
    return check_frame(codec.decode(_decoder, data, InvalidFrame))


def identify(data: bytes) -> str | None:
    """Return the id of a frame that was refused, so that its sender can tell which; None where it has no good one."""
    with contextlib.suppress(InvalidRequest):
        ident = codec.decode(_id_decoder, data, InvalidFrame).id
        return check_printable(ident, "`id`", MAX_FRAME_ID_CHARS) if ident else None
    return None


def encode(frame: ServerFrame) -> bytes:
    """Return the bytes of a text frame."""
    return codec.encode(frame)
