"""Chooses the least busy of several clients, from this process's own view. Sans-I/O.

A client's load is the number of commands that this process has in flight to it, and the errors of the last ones. Other
agent APIs have their own view. Gateways do not report loads, because all callers would follow each report at once.
Errors that an agent causes itself (its own limits, a short timeout) count for that agent alone, so that no agent can
steer the commands of others. Of more than eight candidates, eight are drawn at random, which spreads commands nearly as
evenly at a constant cost.

Of one user's sessions the visible one is chosen first, so that the user sees the effect of a command.
"""

import random
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import NamedTuple

from protocol.discovery import Client
from protocol.errors import AGENT_LIMIT, CAPABILITY_LIMIT, Code, ErrorBody
from protocol.runtime.clients.replica import ReplicaEntry
from protocol.subjects import ClientAddress, parse_key

LOOKED_AT = 8
SESSIONS_LOOKED_AT = 64  # of one user, more than a person has
MAX_REMEMBERED = 1000
TELLING_TIMEOUT_MS = 2000  # below it a time-out may be the command's fault, not the client's
# Seconds after such an error in which a client is chosen only if there is no other.
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
    """The parts of a command that matter for the choice."""

    sub: str
    target: str
    timeout_ms: int


class LeastBusy:
    """Chooses clients and remembers when each was chosen. `observe` must get the mirror's changes."""

    def __init__(self) -> None:
        self._turn = 0
        self._wakeups: dict[ClientAddress, int] = {}
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
        """Return the best client among `ids`, or None if all were tried.

        `in_flight` returns the number of commands in flight to a client; `now` is in seconds.
        """
        looked_at = ids if len(ids) <= LOOKED_AT else self._random.sample(ids, LOOKED_AT)
        found = [clients[client_id] for client_id in looked_at if client_id not in tried]
        if not found:
            return None
        return self._take_turn(min(found, key=lambda client: self._rank(client, ask, in_flight, now)))

    def choose_of_user(
        self,
        clients: Mapping[str, Client],
        ids: Sequence[str],
        ask: Ask,
        tried: Collection[str],
        in_flight: InFlight,
        now: float,
    ) -> Client | None:
        """Return the session that its user sees now, or saw last. If no session reports that, choose as `choose()`."""
        looked_at = ids if len(ids) <= SESSIONS_LOOKED_AT else self._random.sample(ids, SESSIONS_LOOKED_AT)
        found = [clients[client_id] for client_id in looked_at if client_id not in tried]
        if all(client.record.focused_at is None for client in found):
            return self.choose(clients, ids, ask, tried, in_flight, now)
        ranked = [(self._rank(client, ask, in_flight, now), client) for client in found]
        soundest = min((*rank[:2], not client.record.is_visible) for rank, client in ranked)
        ranked = [each for each in ranked if (*each[0][:2], not each[1].record.is_visible) == soundest]
        latest = max(client.record.focused_at or "" for _, client in ranked)
        ranked = [each for each in ranked if (each[1].record.focused_at or "") == latest]
        return self._take_turn(min(ranked, key=lambda each: each[0])[1])

    def _take_turn(self, chosen: Client) -> Client:
        self._turn += 1
        self._wakeups[_address(chosen)] = self._turn
        return chosen

    def ended(self, client: Client, ask: Ask, error: ErrorBody, now: float) -> None:
        """Note that a command to a chosen client ended with an error."""
        seconds = AVOID_SECONDS.get(error.code)
        if seconds is None:
            return
        for who in _told_of(client, ask, error):
            self._make_room(now)
            self._avoided[who] = now + seconds

    def observe(self, key: str, before: ReplicaEntry | None, after: ReplicaEntry | None) -> None:
        """Take a change from the mirror: forget a client that is gone."""
        address = parse_key(key) if after is None else None
        if address is not None:
            self._wakeups.pop(address, None)
            self._avoided.pop(address, None)

    def _rank(self, client: Client, ask: Ask, in_flight: InFlight, now: float) -> _Rank:
        """Return a sort key, best first: without recent errors, connected, least busy, longest not chosen."""
        address = _address(client)
        avoided = bool(self._avoided) and any(self._avoided.get(who, 0.0) > now for who in _all_of(client, ask))
        return avoided, client.record.state != "active", in_flight(address), self._wakeups.get(address, 0)

    def _make_room(self, now: float) -> None:
        if len(self._avoided) < MAX_REMEMBERED:
            return
        self._avoided = {who: until for who, until in self._avoided.items() if until > now}
        if len(self._avoided) >= MAX_REMEMBERED:
            del self._avoided[next(iter(self._avoided))]


def _address(client: Client) -> ClientAddress:
    return ClientAddress(client.record.tenant, client.record.client_id)


def _told_of(client: Client, ask: Ask, error: ErrorBody) -> list[_Who]:
    """Return the keys to avoid after an error: the client, its gateway, or its target, for all agents or for one.

    If the gateway does not name the rate limit (an older one), it counts as the agent's.
    """
    whole_client, its_gateway, target, for_agent, gateway_for_agent = _all_of(client, ask)
    match error.code:
        case Code.RATE_LIMITED:
            return [target if error.limit == CAPABILITY_LIMIT else gateway_for_agent]
        case Code.OVERLOADED if error.limit == AGENT_LIMIT:
            return [for_agent]
        case Code.TIMEOUT if ask.timeout_ms < TELLING_TIMEOUT_MS:
            return [for_agent]
        case Code.UNAVAILABLE:  # a draining gateway answers it for all its clients
            return [whole_client, its_gateway]
        case _:
            return [whole_client]


def _all_of(client: Client, ask: Ask) -> tuple[_Who, _Who, _Who, _Who, _Who]:
    """Return the keys under which a client may be avoided: itself, its gateway, a target; for one agent or for all."""
    address, gateway_id = _address(client), client.record.gateway_id
    agent = (address.tenant, ask.sub)
    return address, gateway_id, (address, ask.target), (address, agent), (gateway_id, agent)
