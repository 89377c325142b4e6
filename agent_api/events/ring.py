"""The recent messages in memory. All readers read them here, so none needs a queue of its own. Sans-I/O."""

from bisect import bisect_right
from collections.abc import Iterator

from agent_api.events.messages import Message
from protocol.runtime.streams.positions import Position

MAX_MESSAGES = 10_000
MAX_BYTES = 32 * 1024 * 1024
OVERHEAD_BYTES = 512  # memory of a message besides its data


class Ring:
    """Every message after `floor`, up to `last`: sequences of the stream `epoch`."""

    def __init__(self, max_messages: int = MAX_MESSAGES, max_bytes: int = MAX_BYTES) -> None:
        self.epoch = ""
        self.floor = 0
        self.last = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._bytes = 0
        self._oldest = 0  # messages are numbered without holes, for a fast lookup
        self._by_number: dict[int, Message] = {}

    @property
    def end(self) -> Position:
        """The position of the newest message."""
        return Position(self.epoch, self.last)

    def covers(self, position: Position) -> bool:
        """Tell whether all messages after a position are here."""
        return position.epoch == self.epoch and self.floor < position.sequence <= self.last

    def reset(self, position: Position) -> None:
        """Drop all messages, and go on after `position`."""
        self.epoch, self.floor, self.last = position.epoch, position.sequence, position.sequence
        self._oldest, self._bytes = 0, 0
        self._by_number.clear()

    def limit(self, max_bytes: int) -> None:
        """Keep at most `max_bytes` from now on."""
        self._max_bytes = max_bytes
        self._make_fit()

    def append(self, sequence: int, message: Message | None) -> None:
        """Add the message at the next sequence, or None if it is not one of ours."""
        self.last = sequence
        if message is not None:
            self._by_number[self._oldest + len(self._by_number)] = message
            self._bytes += size_of(message)
            self._make_fit()

    def since(self, sequence: int) -> Iterator[Message]:
        """Yield the messages after a sequence, which must be at or above the floor."""
        numbers = range(self._oldest, self._oldest + len(self._by_number))
        first = bisect_right(numbers, sequence, key=lambda number: self._by_number[number].position.sequence)
        return (self._by_number[number] for number in numbers[first:])

    def _make_fit(self) -> None:
        while len(self._by_number) > self._max_messages or self._bytes > self._max_bytes:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        message = self._by_number.pop(self._oldest)
        self._oldest += 1
        self._bytes -= size_of(message)
        self.floor = message.position.sequence


def size_of(message: Message) -> int:
    """Return the approximate bytes of a message: its data, and again its data in encoded form."""
    return 2 * len(message.data) + OVERHEAD_BYTES
