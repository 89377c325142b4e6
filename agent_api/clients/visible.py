"""The clients that are visible to agents with the same limits, computed and kept once for all of them.

Sans-I/O. It contains nothing about other clients, so that no list made from it can reveal them.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import NamedTuple, Protocol

from protocol.access import Principal, may, view_of
from protocol.discovery import Client

MAX_LOOKS = 1000


class Scope(NamedTuple):
    """The parts of a token that limit which clients it sees."""

    tenant: str
    users: frozenset[str] | None
    apps: frozenset[str] | None
    clients: frozenset[str] | None


def scope_of(principal: Principal) -> Scope:
    """Return the scope of a principal. Agents and administrators with the same limits have the same scope."""
    return Scope(principal.tenant, principal.users, principal.apps, principal.clients)


class Observer(Protocol):
    """Gets the changes among the visible clients."""

    def note(self, client_id: str, *, there: bool) -> None:
        """Note that a client has changed. `there`: it was visible before."""


class VisibleClients:
    """The clients that one scope sees: `clients`, by id, as soon as it is `ready`."""

    def __init__(self, principal: Principal, client_ids: Iterable[str]) -> None:
        """Begin empty. `client_ids` are all clients of the principal's tenant, which `look()` then checks."""
        self.clients: dict[str, Client] = {}
        self.observers: set[Observer] = set()
        self.tenant = principal.tenant
        self._principal = principal
        self._to_look_at = iter(tuple(client_ids))
        self._ready = False
        self._ids: tuple[str, ...] | None = None

    @property
    def ready(self) -> bool:
        """Whether all clients of the tenant have been checked."""
        return self._ready

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all visible clients. It is the same object until one comes or goes."""
        if self._ids is None:
            self._ids = tuple(self.clients)
        return self._ids

    def look(self, clients: Mapping[str, Client]) -> None:
        """Check some more of the initial clients. `clients` are the tenant's present ones."""
        some = list(islice(self._to_look_at, MAX_LOOKS))
        for client_id in some:
            self.change(client_id, clients.get(client_id))
        self._ready = len(some) < MAX_LOOKS

    def change(self, client_id: str, client: Client | None) -> None:
        """Take a client's new record, or None if it is gone. The mirror makes a new object for each change."""
        seen = client if client is not None and may(self._principal, view_of(client.record)) else None
        before = self.clients.get(client_id)
        if seen is before:
            return
        if seen is None:
            del self.clients[client_id]
        else:
            self.clients[client_id] = seen
        if seen is None or before is None:
            self._ids = None
        for observer in self.observers:
            observer.note(client_id, there=before is not None)
