"""A fast path for the common WebSocket frame (RFC 6455 section 5.2): one text frame that is a whole message.

The library parses with generators and builds an object for each frame, which took a third of a gateway's time. Here
complete, masked text frames are read, and text frames are written. The library does everything else.
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
MAX_HEAD_BYTES = 14
MAX_SLICE_BYTES, MAX_SLICE_FRAMES = 64 * 1024, 16
CLOSE_OPCODE = 8
SHORT, MEDIUM, LONG = 126, 127, 1 << 16  # sizes below 126 are in the second byte; 126 and 127 announce longer fields
_SHORT_HEADS = [bytes((WHOLE_TEXT, size)) for size in range(SHORT)]


class Boundaries(StreamReader):
    """The reader of a library parser. It also tells whether the parser is between two frames."""

    def __init__(self, former: StreamReader) -> None:
        super().__init__()
        self.buffer = former.buffer  # the parser still waits in the former reader for the handshake's head
        self.between_frames = False
        self._former = former

    def feed_eof(self) -> None:
        """End the stream, for the former reader too, because a parser that waits there would wait for ever."""
        self._former.feed_eof()
        super().feed_eof()

    def at_eof(self) -> Generator[None, None, bool]:
        """Wait for the first bytes of a frame, as the parser does before each."""
        self.between_frames = not self.buffer
        ended = yield from super().at_eof()
        self.between_frames = False
        return ended


class FrameCutter:
    """Finds the ends of frames from their heads, however the stream is split into chunks."""

    __slots__ = ("_head", "_left")

    def __init__(self) -> None:
        self._head = b""
        self._left = 0

    @property
    def between_frames(self) -> bool:
        """Whether the next byte is the first of a frame."""
        return not self._left and not self._head

    def slice_end(self, data: bytes, start: int) -> int:
        """Return the end of the slice that begins at `start`: after 16 frames, 64 KiB, or the end of the chunk."""
        end, frames, limit = start, 0, min(len(data), start + MAX_SLICE_BYTES)
        while end < limit and frames < MAX_SLICE_FRAMES:
            end = self.advance(data, end, limit)
            frames += self.between_frames
        return end

    def advance(self, data: bytes, at: int, limit: int) -> int:
        """Go on from `at` to the end of a head or of a payload, or to `limit`; return that position."""
        if self._left:
            step = min(self._left, limit - at)
            self._left -= step
            return at + step
        head = self._head + data[at : at + MAX_HEAD_BYTES - len(self._head)]
        size, payload = _measured(head)
        if size > len(head):
            self._head = head
            return len(data)
        at += size - len(self._head)
        self._head, self._left = b"", payload
        return at


def _measured(head: bytes) -> tuple[int, int]:
    """Return the sizes of a frame's head and payload. For an incomplete head the first exceeds the bytes present."""
    if len(head) < 2:
        return MAX_HEAD_BYTES, 0
    code = head[1] & ~MASKED
    length = 2 if code == SHORT else 8 if code == MEDIUM else 0
    size = 2 + length + (MASK_BYTES if head[1] & MASKED else 0)
    return size, int.from_bytes(head[2 : 2 + length]) if length else code


def text_frame(payload: bytes) -> bytes:
    """Return a server's text frame."""
    size = len(payload)
    if size < SHORT:
        return _SHORT_HEADS[size] + payload
    if size < LONG:
        return b"%c%c%b%b" % (WHOLE_TEXT, SHORT, size.to_bytes(2), payload)
    return b"%c%c%b%b" % (WHOLE_TEXT, MEDIUM, size.to_bytes(8), payload)


def whole_text(data: bytes, at: int) -> tuple[bytes, int] | None:
    """Return the payload and the end of the frame at `at` if it is a whole, masked text message below 64 KiB.

    Else return None: for frames of other kinds, frames without data, and incomplete ones.
    """
    if len(data) < at + 2 + MASK_BYTES or data[at] != WHOLE_TEXT:
        return None
    size, mask = data[at + 1] - MASKED, at + 2
    if size == SHORT:
        size, mask = int.from_bytes(data[mask : mask + 2]), at + 4
    payload = mask + MASK_BYTES
    end = payload + size
    if size <= 0 or end > len(data) or data[at + 1] == MASKED + MEDIUM:
        return None
    return apply_mask(data[payload:end], data[mask:payload]), end
