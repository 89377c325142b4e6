"""Progress that a reader has been too slow for: so much is kept and no more, the newest at all events.

Applications put up to 16 KB into a piece of progress, and an agent may have hundreds of commands at a hundred clients
each: a bound on the number for each command would bound little.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from protocol.messages import ProgressMessage

K = TypeVar("K")
V = TypeVar("V")


class Held(Generic[K, V]):
    """What is held, by key, the oldest first."""

    def __init__(self, max_count: int, max_bytes: int) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._held: dict[K, tuple[V, int]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def put(self, key: K, value: V, size: int) -> None:
        """Hold a value of `size` bytes in place of what is held under its key; forget the oldest where that is much."""
        self.drop(key)
        self._held[key] = value, size
        self._bytes += size
        while len(self._held) > self._max_count or (self._bytes > self._max_bytes and len(self._held) > 1):
            self.pop_oldest()

    def drop(self, key: K) -> None:
        """Forget what is held under a key, if anything is."""
        if key in self._held:
            self._pop(key)

    def pop_oldest(self) -> V:
        """Return the oldest value, and hold it no more."""
        return self._pop(next(iter(self._held)))

    def take(self, wanted: Callable[[K], bool]) -> list[V]:
        """Return the values whose keys are wanted, and hold them no more."""
        return [self._pop(key) for key in list(self._held) if wanted(key)]

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self._bytes = 0

    def _pop(self, key: K) -> V:
        value, size = self._held.pop(key)
        self._bytes -= size
        return value


def size_of(message: ProgressMessage) -> int:
    """Return about how many bytes a piece of progress has: what is open to the application's whim."""
    data = memoryview(message.data) if message.data else b""
    return len(data) + len((message.message or "").encode())
