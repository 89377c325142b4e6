"""Drops messages of a flood before they are decoded, by the raw bytes of their subject and headers.

Decoding a message, verifying its token and counting it takes some 10 µs. So as soon as a message on a subject is
dropped, the subject is closed for 20 ms. While it is closed, messages without a good token cost 2 to 4 µs each.
"""

from collections.abc import Callable

from protocol.runtime.tokens import Standing, Verifier

CLOSED_SECONDS = 0.02  # shorter than the time until the next bad token may be answered
MAX_SUBJECTS = 10_000
TOLD_EVERY = 50  # dropped messages per report
_AUTHORIZATION = b"\r\nAuthorization: Bearer "
_NAME = b"authorization"


class Sieve:
    """The closed subjects of one process. `on_dropped` gets a subject and the number of messages dropped there.

    `clock` counts seconds.
    """

    def __init__(self, verifier: Verifier, clock: Callable[[], float], on_dropped: Callable[[str, int], None]) -> None:
        self.dropped = 0
        self._verifier = verifier
        self._clock = clock
        self._on_dropped = on_dropped
        self._closed: dict[bytes, float] = {}
        self._muted: dict[str, float] = {}  # by token of agents far above their share: when the token is heard again
        self._untold = 0

    def close(self, subject: str, token: str | None = None) -> None:
        """Drop messages on a subject without a good token for 20 ms, and those with this token."""
        if len(self._closed) >= MAX_SUBJECTS or len(self._muted) >= MAX_SUBJECTS:
            self._closed.clear()
            self._muted.clear()
        self._closed[subject.encode()] = until = self._clock() + CLOSED_SECONDS
        if token is not None:
            self._muted[token] = until

    def drops(self, subject: bytes, block: bytes) -> bool:
        """Tell whether to drop a message, and count it if so."""
        until = self._closed.get(subject)
        if until is None:
            return False
        now = self._clock()
        if now >= until:
            del self._closed[subject]
            return False
        if block and self._may_be_looked_at(block, now):
            return False
        self.dropped += 1
        self._untold += 1
        if self._untold >= TOLD_EVERY:
            count, self._untold = self._untold, 0
            self._on_dropped(subject.decode(), count)
        return True

    def _may_be_looked_at(self, block: bytes, now: float) -> bool:
        """Tell whether raw headers may contain a good token. In an unusual form only the parser can tell: then True."""
        start = block.find(_AUTHORIZATION)
        if start < 0:
            return _NAME in block.lower()
        start += len(_AUTHORIZATION)
        token = block[start : block.find(b"\r\n", start)].decode(errors="replace")
        if self._muted and self._muted.get(token, 0.0) > now:
            return False
        return self._verifier.standing(token) is not Standing.BAD
