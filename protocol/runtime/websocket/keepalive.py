"""Pings a silent peer and gives up if no pong comes. Sans-I/O: takes the time, never reads a clock."""

import enum


class KeepaliveStep(enum.Enum):
    """The answer of `Keepalive.check`."""

    WAIT = "wait"
    PING = "ping"  # send a ping now; its pong is reported by `heard`
    LOST = "lost"  # the last ping has no pong in time


class Keepalive:
    """The signs of life of one connection; times are monotonic, in seconds."""

    __slots__ = ("_heard", "_pinged")

    def __init__(self, now: float) -> None:
        self._heard = now
        self._pinged: float | None = None

    def heard(self, now: float) -> None:
        """Note a sign of life: a frame or a pong."""
        self._heard = now
        self._pinged = None

    def silent_seconds(self, now: float) -> float:
        """Return the seconds since the last sign of life."""
        return now - self._heard

    def check(self, now: float, ping_after_seconds: float, pong_within_seconds: float) -> KeepaliveStep:
        """Decide whether to ping the peer, or to give it up. After `PING` its pong is awaited."""
        if self._pinged is not None:
            return KeepaliveStep.WAIT if now - self._pinged < pong_within_seconds else KeepaliveStep.LOST
        if self.silent_seconds(now) < ping_after_seconds:
            return KeepaliveStep.WAIT
        self._pinged = now
        return KeepaliveStep.PING
