"""The queue of logins: addresses take turns, and the newest login of an address comes first.

A server gives up on a login after two seconds, and its client tries again. So the newest login is the one that can
still be answered in time. An older one is dropped when its turn comes. If the queue is full, the oldest login of the
address with the most logins is dropped, so that a flood from one address leaves room for others.
"""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

L = TypeVar("L")


class WaitingLogins(Generic[L]):
    """At most `capacity` logins, each valid for `patience_seconds`. Times are in seconds."""

    def __init__(self, capacity: int, patience_seconds: float) -> None:
        self._capacity = capacity
        self._patience_seconds = patience_seconds
        self._hosts: OrderedDict[str, deque[tuple[float, L]]] = OrderedDict()
        self._count = 0
        self.dropped = 0

    def __len__(self) -> int:
        return self._count

    def add(self, host: str, login: L, now: float) -> None:
        """Queue a login. If the queue is full, drop the oldest one of the address with the most logins."""
        self._hosts.setdefault(host, deque()).append((now, login))
        self._count += 1
        if self._count > self._capacity:
            busiest = max(self._hosts, key=lambda each: len(self._hosts[each]))
            self._hosts[busiest].popleft()
            self._forget(busiest, 1)

    def take(self, now: float) -> L | None:
        """Take the newest login of the next address in turn. Return None if no login can still be answered in time."""
        while self._hosts:
            host, logins = next(iter(self._hosts.items()))
            self._hosts.move_to_end(host)
            arrived, login = logins.pop()
            if now - arrived <= self._patience_seconds:
                self._count -= 1
                self._remove_if_empty(host)
                return login
            self._forget_all(host, 1 + len(logins))
        return None

    def _forget_all(self, host: str, count: int) -> None:
        self._hosts[host].clear()
        self._forget(host, count)

    def _forget(self, host: str, count: int) -> None:
        self.dropped += count
        self._count -= count
        self._remove_if_empty(host)

    def _remove_if_empty(self, host: str) -> None:
        if not self._hosts[host]:
            del self._hosts[host]
