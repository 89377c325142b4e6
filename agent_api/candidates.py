"""Which clients may be meant by a target alone, kept up to date so that nobody searches thousands for each command.

A *pool* holds the ids of the clients that offer one target (and action) to whoever has certain rights. It is made when
it is first asked for, by one look at every client of the tenant, and follows the mirror's news from then on; so targets
that nobody calls this way cost nothing. Agents limited to a few users or clients need no pool: their clients are few.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from protocol import subjects
from protocol.access import Principal
from protocol.discovery import Client, usable
from protocol.runtime.replica import Entry

MAX_POOLS = 128
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


class Candidates:
    """The pools in use. `observe` must hear all of a mirror's news, from the beginning."""

    def __init__(self) -> None:
        self._pools: OrderedDict[_View, _Pool] = OrderedDict()
        self._by_user: dict[tuple[str, str], set[str]] = {}

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

    def of_users(self, tenant: str, users: Iterable[str]) -> list[str]:
        """Return the ids of all clients of these users."""
        return [client_id for user in users for client_id in self._by_user.get((tenant, user), ())]

    def _pool(self, clients: Mapping[str, Client], view: _View) -> _Pool:
        pool = self._pools.get(view)
        if pool is not None:
            self._pools.move_to_end(view)
            return pool
        pool = _Pool(client.record.client_id for client in clients.values() if view.shows(client))
        if pool.ids:  # else strangers' inventions would drive out what is offered
            self._pools[view] = pool
            if len(self._pools) > MAX_POOLS:
                self._pools.popitem(last=False)
        return pool

    def _few(self, principal: Principal) -> Iterable[str] | None:
        """Return the ids that a limited principal's clients are among, None where they may be many."""
        if principal.clients is not None and len(principal.clients) <= FEW:
            return principal.clients
        if principal.users is None or len(principal.users) > FEW:
            return None
        count = sum(len(self._by_user.get((principal.tenant, user), ())) for user in principal.users)
        return self.of_users(principal.tenant, principal.users) if count <= FEW else None

    def _move(self, tenant: str, client_id: str, before: Client | None, after: Client | None) -> None:
        """Keep the clients of each user."""
        if before is not None and (after is None or after.record.user != before.record.user):
            owner = (tenant, before.record.user)
            self._by_user[owner].discard(client_id)
            if not self._by_user[owner]:
                del self._by_user[owner]
        if after is not None:
            self._by_user.setdefault((tenant, after.record.user), set()).add(client_id)
