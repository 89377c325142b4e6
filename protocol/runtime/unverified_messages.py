"""How many messages without a token that is known to be good are looked at. Sans-I/O; `now` is a monotonic time.

A NATS user can send 90,000 messages a second to a subject. To decode, verify, answer and record one costs more than
0.1 ms, so a process looks at a few and drops the others unread. Messages with a good token are never counted here.
The three other standings have buckets of their own, so that messages without a token leave room for the first message
of a good one. If only a public key tells a forged token from a new good one, each `sub` that new tokens name has a
bucket, too, and fresh tokens of known agents have room of their own. The buckets of one client bound a flood at that
client, those of its tenant a flood at all its clients; other tenants feel neither.
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


RENEWED = "renewed"  # new, and names an agent that is known
_Kind = Standing | str
CLAIM = Rate(per_second=100, burst=200)  # new tokens that name the same `sub` at one client
_RATES: dict[_Kind, _Rates] = {
    # Refusals of any kind: an answer and a record each.
    Standing.BAD: _Rates(client=Rate(per_second=20, burst=50), tenant=Rate(per_second=100, burst=500)),
    # Good for `cancel` and `probe` alone: each caller sends one probe a second.
    Standing.EXPIRED: _Rates(client=Rate(per_second=100, burst=200), tenant=Rate(per_second=500, burst=2000)),
    # To verify one takes 20 µs by a secret, 45 to 85 µs by a public key: 1,000 a second are 2 to 9 % of a core.
    Standing.NEW: _Rates(client=Rate(per_second=500, burst=1000), tenant=Rate(per_second=1000, burst=5000)),
    RENEWED: _Rates(client=Rate(per_second=500, burst=1000), tenant=Rate(per_second=1000, burst=5000)),
}


class UnverifiedMessages:
    """Counts the messages to the clients of one gateway, or to one registry, and those that were dropped."""

    def __init__(self) -> None:
        self.dropped = 0
        self.last_client = ""
        self._clients = TokenBuckets(MAX_KEYS)
        self._tenants = TokenBuckets(MAX_KEYS)
        self._claims = TokenBuckets(MAX_KEYS)

    def admits(self, standing: Standing, address: ClientAddress, now: float, claim: TokenOwner | None = None) -> bool:
        """Tell whether to look at a message to this client; if not, it counts as dropped.

        `claim` is whom a new token names whose signature nobody has looked at yet.

        A bad token is charged when its message is refused, as a new one that turns out to be bad is.
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
        """Tell whether to answer and record the refusal of such a message; if not, it counts as dropped."""
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
