"""The native dialect: frames are JSON objects in text frames, and so are our messages; hardly anything to translate."""

import msgspec

from protocol import codec
from protocol.errors import InvalidFrame
from protocol.frames import ClientFrame, ServerFrame, check_frame

SUBPROTOCOL = "agentbridge.v1"
_decoder: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)


def decode(data: bytes, *, text: bool) -> ClientFrame:
    """Return what a client's frame says. Raises `InvalidFrame` with a sentence that names the field."""
    if not text:
        raise InvalidFrame("binary frames are not understood: send JSON in text frames")
    return check_frame(codec.decode(_decoder, data, InvalidFrame))


def encode(frame: ServerFrame) -> bytes:
    """Return the bytes of a text frame."""
    return codec.encode(frame)
