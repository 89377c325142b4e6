"""Drops floods of messages to clients' subjects, and unsubscribes a subject if even dropping takes too long.

Messages without a known good token are verified up to a rate. Above it they are dropped, and after the first drop even
without being decoded. If NATS delivers more than can be dropped, the flooded tenant's clients are unsubscribed for a
while.
"""

import logging
from collections.abc import Callable
from typing import Protocol

from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.library.subscriptions import Drops
from protocol.runtime.sieve import Sieve
from protocol.runtime.subject_floods import SubjectFloods
from protocol.runtime.tokens import Standing, Verifier
from protocol.runtime.unverified_messages import UnverifiedMessages
from protocol.subjects import ClientAddress

LOG_SECONDS = 1.0

log = logging.getLogger(__name__)


class Reachable(Protocol):
    """A client with a subject of its own."""

    @property
    def address(self) -> ClientAddress:
        """The client of the subject."""

    def leave_subject(self, seconds: float) -> bool:
        """Take no messages for a while. Return False if that is so already."""


class FloodGuard:
    """Decides which messages of one gateway are dropped. `lag(now)` returns the lag of NATS's messages in seconds."""

    def __init__(self, verifier: Verifier, clock: Callable[[], float], lag: Callable[[float], float]) -> None:
        self._verifier = verifier
        self._clock = clock
        self._unverified = UnverifiedMessages()
        self._sieve = Sieve(verifier, clock, self._on_sieved)
        self._floods = SubjectFloods(lag)
        self._closed: dict[str, Reachable] = {}  # by subject
        self._left = 0
        self._refused = 0
        self._dropped_before = 0
        self._dropped_lines = LogThrottle(LOG_SECONDS, clock)
        self._left_lines = LogThrottle(LOG_SECONDS, clock)

    @property
    def drops(self) -> Drops:
        """The function that drops messages of a flood before they are decoded."""
        return self._sieve.drops

    def admits(self, client: Reachable, standing: Standing, subject: str, token: str | None) -> bool:
        """Tell whether to look at a message, before its body is decoded or its token verified."""
        if standing is Standing.GOOD:
            return True
        claim = self._verifier.claimed(token) if standing is Standing.NEW else None
        if self._unverified.admits(standing, client.address, self._clock(), claim):
            return True
        if standing is Standing.BAD:
            self._closed[subject] = client
            self._sieve.close(subject)
        self._count(client, 1)
        return False

    def admits_refusal(self, client: Reachable) -> bool:
        """Tell whether to answer and record the refusal of a message whose token is not known to be good."""
        return self._unverified.admits_refusal(client.address, self._clock())

    def drop(self, client: Reachable, subject: str, token: str | None) -> None:
        """Drop a message of an agent that has used up its share and has got enough refusals."""
        self._refused += 1
        self._closed[subject] = client
        self._sieve.close(subject, token)
        self._count(client, 1)

    def used_up(self, client: Reachable) -> None:
        """Unsubscribe a client after NATS has ended its subscription, because messages came too fast.

        The first time it is subscribed again at once, because a burst is no flood.
        """
        self._leave(client, self._floods.used_up(client.address.tenant, self._clock()))

    def counters(self) -> dict[str, int]:
        """Return the counters of `/metrics` since the start."""
        return {"messagesDropped": self._dropped, "subjectsLeft": self._left}

    def log_dropped(self) -> None:
        """Log how many messages were dropped, once a second at most. Call this regularly."""
        since, self._dropped_before = self._dropped - self._dropped_before, self._dropped
        if count := self._dropped_lines.due(since):
            client_id = self._unverified.last_client
            log.warning("dropped %d messages without a good token or reply, the last for client %s", count, client_id)
        self._closed.clear()  # an ongoing flood closes its subjects again

    @property
    def _dropped(self) -> int:
        return self._unverified.dropped + self._sieve.dropped + self._refused

    def _on_sieved(self, subject: str, count: int) -> None:
        client = self._closed.get(subject)
        if client is not None:
            self._count(client, count)

    def _count(self, client: Reachable, count: int) -> None:
        """Count a dropped message, and unsubscribe the client for a while if its tenant's subjects are flooded."""
        seconds = self._floods.dropped(client.address.tenant, self._clock(), count)
        if seconds:
            self._leave(client, seconds)

    def _leave(self, client: Reachable, seconds: float) -> None:
        if client.leave_subject(seconds):
            self._left += 1
            if lines := self._left_lines.due():
                sentence = "unsubscribed %d clients, the last one %s for %.1f s: their subjects are flooded"
                log.warning(sentence, lines, client.address.client_id, seconds)
