"""The rates at which one application, and all of a tenant together, may send events, progress and registrations.

Metadata counts as a registration, because the registry writes a record for either. Frames and bytes share one token
bucket, in seconds: a frame costs its time at the slower of the two rates, and one second's worth may come at once. A
full token bucket admits a larger frame, and then owes the rest.
"""

from collections.abc import Hashable
from typing import NamedTuple

from protocol.access import ClientView
from protocol.errors import CLIENT_LIMIT, TENANT_LIMIT, RateLimited
from protocol.records import Rate
from protocol.runtime.token_buckets import TokenBuckets

MAX_SESSIONS = 50_000
MAX_TENANTS = 10_000
SECOND = Rate(per_second=1.0, burst=1.0)


class TooManyBytes(RateLimited):
    """A frame is above the byte rate. Even refusing it costs its reading, so the socket should be read more slowly."""


class FrameRate(NamedTuple):
    """Frames and bytes a second; 0 means no limit."""

    per_second: float
    bytes_per_second: float

    def __str__(self) -> str:
        parts = {"": self.per_second, " bytes": self.bytes_per_second}
        return " and ".join(f"{number:.10g}{unit}" for unit, number in parts.items() if number)


class FrameLimits(NamedTuple):
    """The rates of one kind of frame: for each session, and for each tenant."""

    session: FrameRate
    tenant: FrameRate


class FrameBuckets:
    """One token bucket for each session or tenant, all with the same rate."""

    def __init__(self, rate: FrameRate, max_owners: int) -> None:
        self._frame_seconds = 1 / rate.per_second if rate.per_second else 0.0
        self._byte_seconds = 1 / rate.bytes_per_second if rate.bytes_per_second else 0.0
        self._buckets = TokenBuckets(max_owners)

    def draw(self, owner: Hashable, size: int, now: float) -> float:
        """Take a frame of `size` bytes and return 0, or return in how many seconds there will be room for it."""
        seconds = max(size * self._byte_seconds, self._frame_seconds)
        return self._buckets.draw(owner, SECOND, now, seconds) if seconds else 0.0

    def counts_bytes(self, size: int) -> bool:
        """Tell whether a frame of this size counts by its bytes instead of as one frame."""
        return size * self._byte_seconds > self._frame_seconds


class FrameLimit:
    """The limits of one kind of frame for all clients; `refused` counts the frames above them."""

    def __init__(self, kind: str, limits: FrameLimits) -> None:
        self.refused = 0
        self._sessions = FrameBuckets(limits.session, MAX_SESSIONS)
        self._tenants = FrameBuckets(limits.tenant, MAX_TENANTS)
        self._client_sentence = f"{kind}: this client may send {limits.session} a second"
        self._tenant_sentence = f"{kind}: all clients of this tenant may send {limits.tenant} a second here"

    def keep(self, client: ClientView, size: int, now: float) -> None:
        """Count a frame. Raises `RateLimited` above the frame rate, and `TooManyBytes` above the byte rate."""
        if wait := self._sessions.draw(client.client_id, size, now):
            self.refused += 1
            kind = TooManyBytes if self._sessions.counts_bytes(size) else RateLimited
            raise kind.for_seconds(wait, self._client_sentence, CLIENT_LIMIT)
        if wait := self._tenants.draw(client.tenant, size, now):
            self.refused += 1
            kind = TooManyBytes if self._tenants.counts_bytes(size) else RateLimited
            raise kind.for_seconds(wait, self._tenant_sentence, TENANT_LIMIT)


class ClientRates:
    """The limits of one gateway for the frames of its clients."""

    def __init__(self, events: FrameLimits, progress: FrameLimits, registrations: FrameLimits) -> None:
        self.events = FrameLimit("events", events)
        self.progress = FrameLimit("progress", progress)
        self.registrations = FrameLimit("registrations and metadata", registrations)

    def counters(self) -> dict[str, int]:
        """Return the counters of `/metrics`: frames above their rate since the start."""
        return {
            "eventsRateLimited": self.events.refused,
            "progressRateLimited": self.progress.refused,
            "registrationsRateLimited": self.registrations.refused,
        }
