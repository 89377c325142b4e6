"""Which of several clients is least busy, as far as this process knows. Sans-I/O: takes facts and the time.

What is known of a client's load is the commands that this process has under way to it, whoever sent them, and how the
last ones ended; other agent APIs judge by theirs. What an agent brings upon itself (its own limits, a short timeout) is
remembered for that agent alone, so that none steers the commands of others. Gateways do not report loads: by the time
that such a report were here, a herd of callers would follow it. Of more than eight candidates, eight drawn at random
are looked at, which spreads commands nearly as evenly as a look at all and costs the same for any number.
"""

import random
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import NamedTuple

from protocol.discovery import Client
from protocol.errors import AGENT_LIMIT, CAPABILITY_LIMIT, Code, ErrorBody
from protocol.runtime.replica import Entry
from protocol.subjects import ClientAddress, parse_key

LOOKED_AT = 8
MAX_REMEMBERED = 1000
TELLING_TIMEOUT_MS = 2000  # given less, that a client has not answered may be the command's fault
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
_Who = Hashable


class Ask(NamedTuple):
    """What of a command matters here, beside the clients that it may go to."""

    sub: str
    target: str
    timeout_ms: int


class Balance:
    """Chooses clients and remembers their turns. `observe` must hear the mirror's news."""

    def __init__(self) -> None:
        self._turn = 0
        self._turns: dict[ClientAddress, int] = {}
        self._avoided: dict[_Who, float] = {}
        self._random = random.Random()  # noqa: S311  spreads load, guards nothing

    def choose(
        self,
        clients: Mapping[str, Client],
        ids: Sequence[str],
        ask: Ask,
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
        chosen = min(found, key=lambda client: self._rank(client, ask, in_flight, now))
        self._turn += 1
        self._turns[_address(chosen)] = self._turn
        return chosen

    def ended(self, client: Client, ask: Ask, error: ErrorBody, now: float) -> None:
        """Note that a command which this chose ended with an error."""
        seconds = AVOID_SECONDS.get(error.code)
        if seconds is None:
            return
        for who in _told_of(client, ask, error):
            self._make_room(now)
            self._avoided[who] = now + seconds

    def observe(self, key: str, before: Entry | None, after: Entry | None) -> None:
        """Take a piece of the mirror's news: forget a client that is gone."""
        address = parse_key(key) if after is None else None
        if address is not None:
            self._turns.pop(address, None)
            self._avoided.pop(address, None)

    def _rank(self, client: Client, ask: Ask, in_flight: InFlight, now: float) -> _Rank:
        """Return what sorts the better choice first: sound, connected, least busy, longest not chosen."""
        address = _address(client)
        avoided = bool(self._avoided) and any(self._avoided.get(who, 0.0) > now for who in _all_of(client, ask))
        return avoided, client.record.state != "active", in_flight(address), self._turns.get(address, 0)

    def _make_room(self, now: float) -> None:
        if len(self._avoided) < MAX_REMEMBERED:
            return
        self._avoided = {who: until for who, until in self._avoided.items() if until > now}
        if len(self._avoided) >= MAX_REMEMBERED:
            del self._avoided[next(iter(self._avoided))]


def _address(client: Client) -> ClientAddress:
    return ClientAddress(client.record.tenant, client.record.client_id)


def _told_of(client: Client, ask: Ask, error: ErrorBody) -> list[_Who]:
    """Return who is to be avoided after an error: the client, for all or for one agent, or more or less than that.

    A gateway that does not say whose rate limit it was (an older one) is taken to speak of the agent's.
    """
    whole_client, its_gateway, target, for_agent, gateway_for_agent = _all_of(client, ask)
    match error.code:
        case Code.RATE_LIMITED:
            return [target if error.limit == CAPABILITY_LIMIT else gateway_for_agent]
        case Code.OVERLOADED if error.limit == AGENT_LIMIT:
            return [for_agent]
        case Code.TIMEOUT if ask.timeout_ms < TELLING_TIMEOUT_MS:
            return [for_agent]
        case Code.UNAVAILABLE:  # which gateways say of all that they hold
            return [whole_client, its_gateway]
        case _:
            return [whole_client]


def _all_of(client: Client, ask: Ask) -> tuple[_Who, _Who, _Who, _Who, _Who]:
    """Return all that avoiding a client may be remembered under: it, its gateway, one of its targets, for one agent."""
    address, gateway_id = _address(client), client.record.gateway_id
    agent = (address.tenant, ask.sub)
    return address, gateway_id, (address, ask.target), (address, agent), (gateway_id, agent)
