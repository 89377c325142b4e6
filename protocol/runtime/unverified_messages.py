"""Bounds the messages without a known good token that a process looks at. Sans-I/O; `now` is monotonic, in seconds.

A NATS user can send 90,000 messages a second to a subject. Decoding, verifying, answering and recording one costs more
than 0.1 ms. So a process looks at some, and drops the others unread. Messages with a known good token are not counted.

- Each other standing of a token has token buckets of its own, so that messages without a token leave room for the first
  message with a new good one.
- With a public key, forged tokens cannot be told cheaply from new good ones. So each `sub` in new tokens has a token
  bucket, too, and fresh tokens of known agents have room of their own.
- The token buckets of a client bound a flood at that client, and those of its tenant a flood at all its clients. Other
  tenants notice neither.
"""

from typing import NamedTuple

from protocol.records import Rate
from protocol.runtime.token_buckets import TokenBuckets
from protocol.runtime.tokens import Standing, TokenOwner
from protocol.subjects import ClientAddress

MAX_KEYS = 100_000


class _Rates(NamedTuple):
    client: Rate
    tenant: Rate


RENEWED = "renewed"  # new, with the `sub` of a known agent
_Kind = Standing | str
CLAIM = Rate(per_second=100, burst=200)  # new tokens with the same `sub` at one client
_RATES: dict[_Kind, _Rates] = {
    # Refusals of any kind, each with an answer and a record.
    Standing.BAD: _Rates(client=Rate(per_second=20, burst=50), tenant=Rate(per_second=100, burst=500)),
    # Expired tokens are good for `cancel` and `probe` alone; each caller sends one probe a second.
    Standing.EXPIRED: _Rates(client=Rate(per_second=100, burst=200), tenant=Rate(per_second=500, burst=2000)),
    # Verifying a token takes 20 µs with a secret, 45 to 85 µs with a public key: 1,000 a second are 2 to 9 % of a core.
    Standing.NEW: _Rates(client=Rate(per_second=500, burst=1000), tenant=Rate(per_second=1000, burst=5000)),
    RENEWED: _Rates(client=Rate(per_second=500, burst=1000), tenant=Rate(per_second=1000, burst=5000)),
}


class UnverifiedMessages:
    """Counts the messages to the clients of one gateway, or to one registry, and the dropped ones."""

    def __init__(self) -> None:
        self.dropped = 0
        self.last_client = ""
        self._clients = TokenBuckets(MAX_KEYS)
        self._tenants = TokenBuckets(MAX_KEYS)
        self._claims = TokenBuckets(MAX_KEYS)

    def admits(self, standing: Standing, address: ClientAddress, now: float, claim: TokenOwner | None = None) -> bool:
        """Tell whether to look at a message to this client. If not, it counts as dropped.

        `claim` is the owner in a new token with an unchecked signature.

        A message with a bad token is counted when it is refused, and so is one with a new token that turns out to be
        bad.
        """
        if standing is Standing.GOOD:
            return True
        kind: _Kind = standing
        if claim is not None:
            if self._claims.draw((address, claim.tenant, claim.sub), CLAIM, now):
                self._drop(address)
                return False
            kind = RENEWED if claim.is_known else standing
        admitted = self._has_room(kind, address, now)
        if admitted and standing is not Standing.BAD:
            self._take(kind, address, now)
        return admitted

    def admits_refusal(self, address: ClientAddress, now: float) -> bool:
        """Tell whether to answer and record the refusal of such a message. If not, it counts as dropped."""
        admitted = self._has_room(Standing.BAD, address, now)
        if admitted:
            self._take(Standing.BAD, address, now)
        return admitted

    def _drop(self, address: ClientAddress) -> None:
        self.dropped += 1
        self.last_client = address.client_id

    def _has_room(self, standing: _Kind, address: ClientAddress, now: float) -> bool:
        rates = _RATES[standing]
        of_client = self._clients.wait((standing, address), rates.client, now)
        if not of_client and not self._tenants.wait((standing, address.tenant), rates.tenant, now):
            return True
        self._drop(address)
        return False

    def _take(self, standing: _Kind, address: ClientAddress, now: float) -> None:
        rates = _RATES[standing]
        self._clients.take((standing, address), rates.client, now)
        self._tenants.take((standing, address.tenant), rates.tenant, now)
