"""Which of several clients is least busy, as far as this process knows. Sans-I/O: takes facts and the time.

What is known of a client's load is the commands that this process has under way to it, whoever sent them, and how the
last ones ended; other agent APIs judge by theirs. Gateways do not report loads: by the time that such a report were
here, a herd of callers would follow it. Of more than eight candidates, eight drawn at random are looked at, which
spreads commands nearly as evenly as a look at all and costs the same for any number.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence

from protocol.discovery import Client
from protocol.errors import Code
from protocol.runtime.replica import Entry
from protocol.subjects import ClientAddress, parse_key

LOOKED_AT = 8
MAX_REMEMBERED = 1000
# For so many seconds after such an end, a client is taken only where there is no other.
AVOID_SECONDS = {
    Code.RATE_LIMITED.value: 1.0,
    Code.OVERLOADED.value: 1.0,
    Code.UNAVAILABLE.value: 2.0,
    Code.CLIENT_NOT_FOUND.value: 2.0,
    Code.UNKNOWN_CAPABILITY.value: 2.0,
    Code.CLIENT_LOST.value: 2.0,
    Code.TIMEOUT.value: 10.0,
}
InFlight = Callable[[ClientAddress], int]
_Rank = tuple[bool, bool, int, int]


class Balance:
    """Chooses clients and remembers their turns. `observe` must hear the mirror's news."""

    def __init__(self) -> None:
        self._turn = 0
        self._turns: dict[ClientAddress, int] = {}
        self._avoided: dict[ClientAddress | str, float] = {}
        self._random = random.Random()  # noqa: S311  spreads load, guards nothing

    def choose(
        self,
        clients: Mapping[str, Client],
        ids: Sequence[str],
        tried: Collection[str],
        in_flight: InFlight,
        now: float,
    ) -> Client | None:
        """Return the client whose turn it is among `ids`, None where all were tried.

        `in_flight` says how many commands are under way to a client; `now` is in seconds.
        """
        looked_at = ids if len(ids) <= LOOKED_AT else self._random.sample(ids, LOOKED_AT)
        found = [clients[client_id] for client_id in looked_at if client_id not in tried]
        if not found:
            return None
        chosen = min(found, key=lambda client: self._rank(client, in_flight, now))
        self._turn += 1
        self._turns[_address(chosen)] = self._turn
        return chosen

    def ended(self, client: Client, code: str, now: float) -> None:
        """Note that a command which this chose ended with an error."""
        seconds = AVOID_SECONDS.get(code)
        if seconds is None:
            return
        if len(self._avoided) >= MAX_REMEMBERED:
            self._avoided = {who: until for who, until in self._avoided.items() if until > now}
        self._avoided[_address(client)] = now + seconds
        if code == Code.UNAVAILABLE:  # which gateways say of all that they hold
            self._avoided[client.record.gateway_id] = now + seconds

    def observe(self, key: str, before: Entry | None, after: Entry | None) -> None:
        """Take a piece of the mirror's news: forget a client that is gone."""
        address = parse_key(key) if after is None else None
        if address is not None:
            self._turns.pop(address, None)
            self._avoided.pop(address, None)

    def _rank(self, client: Client, in_flight: InFlight, now: float) -> _Rank:
        """Return what sorts the better choice first: sound, connected, least busy, longest not chosen."""
        address, record = _address(client), client.record
        avoided = max(self._avoided.get(address, 0.0), self._avoided.get(record.gateway_id, 0.0)) > now
        return avoided, record.state != "active", in_flight(address), self._turns.get(address, 0)


def _address(client: Client) -> ClientAddress:
    return ClientAddress(client.record.tenant, client.record.client_id)
