"""WebSocket frames (RFC 6455 section 5.2) of the common kind, a whole text message each, without the library's detour.

The library parses with generators and builds an object for each frame, which a third of a gateway's time went into
when measured. What arrives as one whole, masked text frame is read here, and text frames are written here; every other
frame, and every chunk that is not exactly one frame, is left to the library.
"""

from collections.abc import Generator

from websockets.streams import StreamReader

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without its wheel
    from websockets.utils import apply_mask

WHOLE_TEXT = 0x81  # the last and only frame of a text message, without extensions
MASKED = 0x80
MASK_BYTES = 4
SHORT, MEDIUM, LONG = 126, 127, 1 << 16  # sizes below SHORT stand in the head; the others announce longer fields
_SHORT_HEADS = [bytes((WHOLE_TEXT, size)) for size in range(SHORT)]


class Boundaries(StreamReader):
    """The reader of one of the library's parsers, which tells besides whether that stands between two frames."""

    def __init__(self, former: StreamReader) -> None:
        super().__init__()
        self.buffer = former.buffer  # the parser waits in the former one for the first bytes
        self.between_frames = False

    def at_eof(self) -> Generator[None, None, bool]:
        """Wait for the first bytes of a frame, as the parser does before each."""
        self.between_frames = not self.buffer
        ended = yield from super().at_eof()
        self.between_frames = False
        return ended


def text_frame(payload: bytes) -> bytes:
    """Return a server's text frame."""
    size = len(payload)
    if size < SHORT:
        return _SHORT_HEADS[size] + payload
    if size < LONG:
        return b"%c%c%b%b" % (WHOLE_TEXT, SHORT, size.to_bytes(2), payload)
    return b"%c%c%b%b" % (WHOLE_TEXT, MEDIUM, size.to_bytes(8), payload)


def whole_text(chunk: bytes) -> bytes | None:
    """Return the payload of a chunk that is exactly one masked text frame of at most 64 KiB; None for all else."""
    if len(chunk) < 2 + MASK_BYTES or chunk[0] != WHOLE_TEXT:
        return None
    size, mask = chunk[1] - MASKED, 2
    if size == SHORT:
        size, mask = int.from_bytes(chunk[2:4]), 4
    payload = mask + MASK_BYTES
    if not 0 <= size == len(chunk) - payload or chunk[1] == MASKED + MEDIUM:
        return None
    return apply_mask(chunk[payload:], chunk[mask:payload])
