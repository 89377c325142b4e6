"""Which clients may be meant by a target alone, kept up to date so that nobody searches thousands for each command.

A *pool* holds the ids of the clients that offer one target (and action) to whoever has certain rights. It is made when
it is first asked for, by one look at every client of the tenant, and follows the mirror's news from then on; so targets
that nobody calls this way cost nothing. Agents limited to a few users or clients need no pool: their clients are few.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain

import msgspec

from protocol import subjects
from protocol.access import Principal
from protocol.discovery import Client, usable
from protocol.runtime.replica import Entry

MAX_POOLS = 64
MAX_POOLED = 500_000  # ids in all pools together, about 60 MB
FEW = 32


class _View(msgspec.Struct, frozen=True):
    """What decides who is in a pool: rights, without the name and the end of the token that carries them."""

    rights: Principal
    target: str
    action: str | None

    def shows(self, client: Client) -> bool:
        return usable(client, self.rights, self.target, self.action)


class _Pool:
    """Client ids in a list, which a random one can be drawn from, with the place of each."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids = list(ids)
        self._places = {client_id: place for place, client_id in enumerate(self.ids)}

    def add(self, client_id: str) -> None:
        if client_id not in self._places:
            self._places[client_id] = len(self.ids)
            self.ids.append(client_id)

    def discard(self, client_id: str) -> None:
        """Take an id out, and put the last one into its place."""
        place = self._places.pop(client_id, None)
        if place is None:
            return
        last = self.ids.pop()
        if last != client_id:
            self.ids[place] = last
            self._places[last] = place


class _Users:
    """The clients of each user. Most have one, which is kept without a set of its own: there may be very many."""

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
    """The pools in use. `observe` must hear all of a mirror's news, from the beginning."""

    def __init__(self) -> None:
        self._pools: OrderedDict[_View, _Pool] = OrderedDict()
        self._users = _Users()

    def observe(self, key: str, before: Entry | None, after: Entry | None) -> None:
        """Take a piece of the mirror's news."""
        address = subjects.parse_key(key)
        if address is None:
            return
        tenant, client_id = address
        known, new = before.client if before else None, after.client if after else None
        self._move(tenant, client_id, known, new)
        for view, pool in self._pools.items():
            if view.rights.tenant != tenant:
                continue
            if new is not None and view.shows(new):
                pool.add(client_id)
            else:
                pool.discard(client_id)
        self._forget()

    def of(self, clients: Mapping[str, Client], principal: Principal, target: str, action: str | None) -> Sequence[str]:
        """Return the ids of the clients that offer the target to the principal.

        `clients` are those of the principal's tenant. What is returned changes with the next piece of news.
        """
        few = self._few(principal)
        if few is not None:
            found = (clients[client_id] for client_id in few if client_id in clients)
            return [client.record.client_id for client in found if usable(client, principal, target, action)]
        return self._pool(
            clients, _View(msgspec.structs.replace(principal, sub="", expires_at=0.0), target, action)
        ).ids

    def of_user(self, tenant: str, user: str) -> Collection[str]:
        """Return the ids of all clients of a user; it changes with the next piece of news."""
        return self._users.of(tenant, user)

    def _pool(self, clients: Mapping[str, Client], view: _View) -> _Pool:
        pool = self._pools.get(view)
        if pool is not None:
            self._pools.move_to_end(view)
            return pool
        pool = _Pool(client.record.client_id for client in clients.values() if view.shows(client))
        if pool.ids:  # else strangers' inventions would drive out what is offered
            self._pools[view] = pool
            self._forget()
        return pool

    def _forget(self) -> None:
        """Forget the pools that were not used for longest, where all together are too large."""
        while len(self._pools) > MAX_POOLS or (
            len(self._pools) > 1 and sum(len(pool.ids) for pool in self._pools.values()) > MAX_POOLED
        ):
            self._pools.popitem(last=False)

    def _few(self, principal: Principal) -> Iterable[str] | None:
        """Return the ids that a limited principal's clients are among, None where they may be many."""
        if principal.clients is not None and len(principal.clients) <= FEW:
            return principal.clients
        if principal.users is None or len(principal.users) > FEW:
            return None
        theirs = [self._users.of(principal.tenant, user) for user in principal.users]
        return chain.from_iterable(theirs) if sum(map(len, theirs)) <= FEW else None

    def _move(self, tenant: str, client_id: str, before: Client | None, after: Client | None) -> None:
        """Keep the clients of each user."""
        if before is not None and (after is None or after.record.user != before.record.user):
            self._users.discard(tenant, before.record.user, client_id)
        if after is not None:
            self._users.add(tenant, after.record.user, client_id)
