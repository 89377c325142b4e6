"""Reports refused connections: one warning a second at most, with a count, and a counter by reason.

The warning cuts and escapes values of an unauthenticated peer, because an Origin may be any text.
"""

import logging
from collections import Counter
from collections.abc import Callable

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request

from protocol.errors import Code
from protocol.runtime.log_throttle import LogThrottle

LOG_SECONDS = 1.0
MAX_SHOWN_CHARS = 200
# The other reasons are codes of errors.
NO_TOKEN, FOREIGN_ORIGIN, NO_INTRODUCTION = "no_token", "origin", "no_introduction"
CODES = Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.OVERLOADED, Code.UNAVAILABLE
REASONS = NO_TOKEN, FOREIGN_ORIGIN, NO_INTRODUCTION, *(code.value for code in CODES)

log = logging.getLogger(__name__)


class RefusedConnections:
    """Counts and logs the connections that a process refuses; `whose` names the peers, such as `applications`."""

    def __init__(self, whose: str, clock: Callable[[], float]) -> None:
        self._whose = whose
        self._lines = LogThrottle(LOG_SECONDS, clock)
        self._counts = Counter(dict.fromkeys(REASONS, 0))  # a rate needs a first value

    def note(
        self, connection: ServerConnection, request: Request | None, reason: str, why: str, sub: str | None = None
    ) -> None:
        """Count and log a refusal. `why` is our own sentence, `sub` that of the verified token, if there is one."""
        self._counts[reason] += 1
        if count := self._lines.due():
            origin = request.headers.get_all("Origin") if request is not None else []
            parts = {"origin": ", ".join(origin), "address": _address(connection), "sub": sub}
            about = " ".join(f"{name}={value[:MAX_SHOWN_CHARS]!r}" for name, value in parts.items() if value)
            log.warning("refused %d %s, the last for %s: %s %s", count, self._whose, reason, why, about)

    def counters(self) -> dict[str, int]:
        """Return the counters of `/metrics`: refused connections since the start, by reason."""
        return {f"connectionsRefused:{reason}": count for reason, count in self._counts.items()}


def _address(connection: ServerConnection) -> str:
    peer = connection.remote_address
    return str(peer[0]) if isinstance(peer, tuple) else ""
