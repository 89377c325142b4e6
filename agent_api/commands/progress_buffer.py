"""Keeps progress for a slow reader, bounded in bytes. The newest progress is always kept.

A progress message may have 16 KB, and an agent may have hundreds of commands at a hundred clients each, so a bound on
messages per command would not be enough. The shares of admission bound all buffers of a process, because they count 26
KB for each command at each client: a streamed command keeps no more than that, and a socket keeps one message for each
command and client.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from protocol.messages import ProgressMessage

K = TypeVar("K")
V = TypeVar("V")


class ProgressBuffer(Generic[K, V]):
    """Unsent progress by key, the oldest first."""

    def __init__(self, max_count: int, max_bytes: int) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._buffered: dict[K, tuple[V, int]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._buffered)

    def put(self, key: K, value: V, size: int) -> None:
        """Replace the value of a key by one of `size` bytes. Drop the oldest values above the bound."""
        self.drop(key)
        self._buffered[key] = value, size
        self._bytes += size
        while len(self._buffered) > self._max_count or (self._bytes > self._max_bytes and len(self._buffered) > 1):
            self.pop_oldest()

    def drop(self, key: K) -> None:
        """Drop the value of a key, if there is one."""
        if key in self._buffered:
            self._pop(key)

    def pop_oldest(self) -> V:
        """Remove and return the oldest value."""
        return self._pop(next(iter(self._buffered)))

    def take(self, wanted: Callable[[K], bool]) -> list[V]:
        """Remove and return the values of these keys."""
        return [self._pop(key) for key in list(self._buffered) if wanted(key)]

    def clear(self) -> None:
        """Forget everything."""
        self._buffered.clear()
        self._bytes = 0

    def _pop(self, key: K) -> V:
        value, size = self._buffered.pop(key)
        self._bytes -= size
        return value


def size_of(message: ProgressMessage) -> int:
    """Return the approximate bytes of a progress message: those of the fields that the application fills."""
    data = memoryview(message.data) if message.data else b""
    return len(data) + len((message.message or "").encode())
