"""The clients that offer a target, kept up to date, so that no command searches thousands of records.

A *pool* holds the ids of the clients that offer one target (and action) to agents with the same rights. The first
request makes it by a scan of the tenant's clients; after that it follows the mirror's changes. So targets that nobody
calls this way cost nothing. Agents limited to a few users or clients need no pool: their clients are few.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import msgspec

from protocol import subjects
from protocol.access import Principal
from protocol.discovery import Client, Query, matches, usable
from protocol.runtime.clients.replica import ReplicaEntry

MAX_POOLS = 64
MAX_POOLED = 500_000  # ids in all pools together, about 60 MB if each has a user of its own
FEW = 32
EVERYBODY = Query()


class _CandidateView(msgspec.Struct, frozen=True):
    """The rights that decide the members of a pool: a token without its `sub` and its `exp`."""

    rights: Principal
    target: str
    action: str | None

    def shows(self, client: Client) -> bool:
        return usable(client, self.rights, self.target, self.action)


class Fitting(NamedTuple):
    """The ids of fitting clients, and whether they all belong to one user."""

    ids: Sequence[str]
    of_one_user: bool


class _ClientGroup:
    """A set of client ids that allows a random draw (a list, with the index of each), and their number by user."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.users: Counter[str] = Counter()
        self._places: dict[str, int] = {}

    def add(self, client: Client) -> None:
        client_id = client.record.client_id
        if client_id not in self._places:
            self._places[client_id] = len(self.ids)
            self.ids.append(client_id)
            self.users[client.record.user] += 1

    def discard(self, client: Client) -> None:
        """Remove a client, and move the last one to its index."""
        client_id, user = client.record.client_id, client.record.user
        place = self._places.pop(client_id, None)
        if place is None:
            return
        self.users[user] -= 1
        if not self.users[user]:
            del self.users[user]
        last = self.ids.pop()
        if last != client_id:
            self.ids[place] = last
            self._places[last] = place


class _Pool:
    """The connected clients of a target, and the disconnected ones, which count only if no other is there."""

    def __init__(self, clients: Iterable[Client]) -> None:
        self._connected = _ClientGroup()
        self._detached = _ClientGroup()
        for client in clients:
            self.add(client)

    @property
    def ids(self) -> list[str]:
        """The ids of the fitting clients: the connected ones, or if there are none, the disconnected ones."""
        return self._counting.ids

    @property
    def users(self) -> Counter[str]:
        """The number of these clients by user."""
        return self._counting.users

    @property
    def all_ids(self) -> Iterable[str]:
        """The ids of all, connected or not."""
        return chain(self._connected.ids, self._detached.ids)

    @property
    def size(self) -> int:
        """The number of all ids."""
        return len(self._connected.ids) + len(self._detached.ids)

    def add(self, client: Client) -> None:
        into, out_of = self._connected, self._detached
        if client.record.is_detached:
            into, out_of = out_of, into
        out_of.discard(client)
        into.add(client)

    def discard(self, client: Client) -> None:
        self._connected.discard(client)
        self._detached.discard(client)

    @property
    def _counting(self) -> _ClientGroup:
        return self._connected if self._connected.ids else self._detached


class _Users:
    """The clients by user. A single client is stored without a set, because most users have one and users are many."""

    def __init__(self) -> None:
        self._owned: dict[str, dict[str, str | set[str]]] = {}

    def of(self, tenant: str, user: str) -> Collection[str]:
        owned = self._owned.get(tenant, {}).get(user, ())
        return (owned,) if isinstance(owned, str) else owned

    def add(self, tenant: str, user: str, client_id: str) -> None:
        users = self._owned.setdefault(tenant, {})
        owned = users.get(user)
        if owned is None:
            users[user] = client_id
        elif isinstance(owned, set):
            owned.add(client_id)
        elif owned != client_id:
            users[user] = {owned, client_id}

    def discard(self, tenant: str, user: str, client_id: str) -> None:
        users = self._owned[tenant]
        owned = users[user]
        if isinstance(owned, set):
            owned.discard(client_id)
        if not owned or owned == client_id:
            del users[user]
        if not users:
            del self._owned[tenant]


class Candidates:
    """The pools in use. `observe` must get all changes of a mirror, from the beginning."""

    def __init__(self, max_pooled: int = MAX_POOLED) -> None:
        self._max_pooled = max_pooled
        self._pools: OrderedDict[_CandidateView, _Pool] = OrderedDict()
        self._users = _Users()

    def observe(self, key: str, before: ReplicaEntry | None, after: ReplicaEntry | None) -> None:
        """Take a change from the mirror."""
        address = subjects.parse_key(key)
        if address is None:
            return
        tenant, client_id = address
        known, new = before.client if before else None, after.client if after else None
        self._move(tenant, client_id, known, new)
        for view, pool in self._pools.items():
            if view.rights.tenant != tenant:
                continue
            if known is not None and (new is None or new.record.user != known.record.user or not view.shows(new)):
                pool.discard(known)
            if new is not None and view.shows(new):
                pool.add(new)
        self._forget()

    def of(self, clients: Mapping[str, Client], principal: Principal, target: str, action: str | None) -> Sequence[str]:
        """Return the ids of the clients that offer the target to the principal.

        `clients` are those of the principal's tenant. The returned set is live: the next change may alter it.
        """
        few = self._few(principal)
        if few is not None:
            found = (clients[client_id] for client_id in few if client_id in clients)
            return _ids(client for client in found if usable(client, principal, target, action))
        return self._pool(clients, _view(principal, target, action)).ids

    def _all_of(
        self, clients: Mapping[str, Client], principal: Principal, target: str, action: str | None
    ) -> Iterable[str]:
        """Return the ids of all clients that offer the target, connected or not."""
        few = self._few(principal)
        if few is None:
            return self._pool(clients, _view(principal, target, action)).all_ids
        return [each for each in few if each in clients and usable(clients[each], principal, target, action)]

    def among(
        self, clients: Mapping[str, Client], principal: Principal, target: str, action: str | None, query: Query
    ) -> Fitting:
        """Return the clients that offer the target to the principal and are selected by the query."""
        if query.user is not None:
            theirs = (clients[client_id] for client_id in self.of_user(principal.tenant, query.user))
            fitting = (client for client in theirs if matches(client, query))
            return Fitting(_ids(one for one in fitting if usable(one, principal, target, action)), of_one_user=True)
        few = self._few(principal)
        if few is None and query == EVERYBODY:
            pool = self._pool(clients, _view(principal, target, action))
            return Fitting(pool.ids, len(pool.users) <= 1)
        all_ids = self._all_of(clients, principal, target, action)
        ids = _ids(clients[each] for each in all_ids if matches(clients[each], query))
        return Fitting(ids, all(clients[each].record.user == clients[ids[0]].record.user for each in ids))

    def of_user(self, tenant: str, user: str) -> Collection[str]:
        """Return the ids of all clients of a user. The set is live, as that of `of()`."""
        return self._users.of(tenant, user)

    def _pool(self, clients: Mapping[str, Client], view: _CandidateView) -> _Pool:
        pool = self._pools.get(view)
        if pool is not None:
            self._pools.move_to_end(view)
            return pool
        pool = _Pool(client for client in clients.values() if view.shows(client))
        if pool.ids:  # else invented targets would evict the real ones
            self._pools[view] = pool
            self._forget()
        return pool

    def _forget(self) -> None:
        """Evict the least recently used pools if all together are too large."""
        while len(self._pools) > MAX_POOLS or (
            len(self._pools) > 1 and sum(pool.size for pool in self._pools.values()) > self._max_pooled
        ):
            self._pools.popitem(last=False)

    def _few(self, principal: Principal) -> Iterable[str] | None:
        """Return a small set that includes all clients of a limited principal, or None if they may be many."""
        if principal.clients is not None and len(principal.clients) <= FEW:
            return principal.clients
        if principal.users is None or len(principal.users) > FEW:
            return None
        theirs = [self._users.of(principal.tenant, user) for user in principal.users]
        return chain.from_iterable(theirs) if sum(map(len, theirs)) <= FEW else None

    def _move(self, tenant: str, client_id: str, before: Client | None, after: Client | None) -> None:
        """Update the clients by user."""
        if before is not None and (after is None or after.record.user != before.record.user):
            self._users.discard(tenant, before.record.user, client_id)
        if after is not None:
            self._users.add(tenant, after.record.user, client_id)


def _ids(clients: Iterable[Client]) -> list[str]:
    """Return the ids of the connected clients, or of the others if none is connected."""
    connected: list[str] = []
    detached: list[str] = []
    for client in clients:
        (detached if client.record.is_detached else connected).append(client.record.client_id)
    return connected or detached


def _view(principal: Principal, target: str, action: str | None) -> _CandidateView:
    return _CandidateView(msgspec.structs.replace(principal, sub="", expires_at=0.0), target, action)
