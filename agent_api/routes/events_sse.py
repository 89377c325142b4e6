"""Messages, gaps and resume positions as server-sent events."""

from agent_api.events.cursor import Item
from agent_api.events.gaps import Gap
from agent_api.events.messages import Message
from agent_api.http.sse import block
from protocol import codec
from protocol.runtime.streams.positions import Position


def opening(retry_ms: int, position: Position) -> bytes:
    """Return the first block of a stream: the reconnection time and the position to resume from."""
    return b"retry: %d\n" % retry_ms + advance(position)


def advance(position: Position) -> bytes:
    """Return an id without data, which a reader remembers without an event."""
    return b"id: %b\n\n" % str(position).encode()


def write(item: Item) -> bytes:
    """Return a message or a gap. A message is encoded once for all readers."""
    return item.written(_message) if isinstance(item, Message) else _gap(item)


def _message(message: Message) -> bytes:
    return b"id: %b\n" % str(message.position).encode() + block(message.kind.encode(), message.data)


def _gap(gap: Gap) -> bytes:
    data = {"reason": gap.reason, "message": gap.message, "from": str(gap.position)}
    return b"id: %b\n" % str(gap.position).encode() + block(b"gap", codec.encode(data))
