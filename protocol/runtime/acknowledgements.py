"""What has become of messages that a stream is to keep, by its acknowledgements. Sans-I/O; `now` is in seconds.

One acknowledgement vouches for a group of messages that left together, since JetStream stores what one connection sends
in its order. Where the stream's sequences leave no room for a whole group, the difference is missing; so is a group
that the stream refuses, or has not acknowledged after five seconds. A single message that the stream refuses out of the
middle of a group goes unnoticed where another process's message has taken up the room; what makes a stream refuse small
messages of one kind, a lack of space above all, seldom ends within a group.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

import msgspec

from protocol import codec
from protocol.errors import BridgeError

STORE_TIMEOUT_SECONDS = 5.0


class _PubAck(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    error: Any = None


class _Group(NamedTuple):
    messages: int
    sent: float


_decoder = msgspec.json.Decoder(_PubAck)


class Acknowledgements:
    """The groups that one stream has not acknowledged, and the sums: `stored`, and `waiting` to be."""

    def __init__(self, stream: str) -> None:
        self.stored = 0
        self.waiting = 0
        self._stream = stream
        self._groups: OrderedDict[str, _Group] = OrderedDict()
        self._last_sequence = 0

    def sent(self, reply: str, messages: int, now: float) -> None:
        """Note a group; its acknowledgement will come to `reply`."""
        self._groups[reply] = _Group(messages, now)
        self.waiting += messages

    def answered(self, reply: str, data: bytes) -> int:
        """Note what came to `reply`; return how many messages of its group are missing from the stream."""
        group = self._groups.pop(reply, None)
        if group is None:  # given up before
            return 0
        self.waiting -= group.messages
        missing = group.messages - min(group.messages, self._room(data))
        self.stored += group.messages - missing
        return missing

    def give_up(self, now: float) -> int:
        """Wait no more for what was not acknowledged in time; return how many messages that are."""
        missing = 0
        while self._groups:
            reply, group = next(iter(self._groups.items()))
            if now < group.sent + STORE_TIMEOUT_SECONDS:
                break
            del self._groups[reply]
            missing += group.messages
        self.waiting -= missing
        return missing

    def _room(self, data: bytes) -> int:
        """Return how many messages the stream has stored since its last acknowledgement, as far as that is known."""
        sequence, last = self._sequence(data), self._last_sequence
        if not sequence:
            return 0
        self._last_sequence = sequence
        return sequence - last if sequence > last else sequence  # where it went back, it is another stream

    def _sequence(self, data: bytes) -> int:
        """Return the sequence that our stream acknowledges, 0 for anything else."""
        try:
            answer = codec.decode(_decoder, data)
        except BridgeError:
            return 0
        return answer.seq if answer.stream == self._stream and not answer.error else 0
