"""What the mirror answers: a principal's clients, one of them, the only one that offers a target."""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from protocol.access import Principal, may, view_of
from protocol.discovery import Client, offering
from protocol.errors import AmbiguousClient, ClientNotFound, Unavailable, UnknownCapability

MAX_CANDIDATES = 100


class Clients(Protocol):
    """Who knows the connected clients; `filled` is set once the first list is there."""

    filled: asyncio.Event

    def clients(self, tenant: str) -> Mapping[str, Client]:
        """Return a tenant's clients by id."""


def clients_of(known: Clients, principal: Principal) -> Mapping[str, Client]:
    """Return the clients of the principal's tenant; raise `Unavailable` before the first list is there."""
    if not known.filled.is_set():
        raise Unavailable("the list of clients has not been read yet; try again in a moment")
    return known.clients(principal.tenant)


def visible_client(known: Clients, principal: Principal, client_id: str) -> Client:
    """Return a client that the principal may see; raise `ClientNotFound` for any other."""
    client = clients_of(known, principal).get(client_id)
    if client is None or not may(principal, view_of(client.record)):
        raise ClientNotFound
    return client


def only_client(clients: Mapping[str, Client], principal: Principal, target: str, action: str | None) -> str:
    """Return the id of the one client that fits.

    Raises `AmbiguousClient` naming up to 100 of them where there are several, `UnknownCapability` where there is none.
    """
    found = sorted(client.record.client_id for client in offering(clients.values(), principal, target, action))
    if not found:
        raise UnknownCapability(f"no connected client that this token may use offers {_named(target, action)}")
    if len(found) > 1:
        raise AmbiguousClient(
            f"{len(found)} clients offer {_named(target, action)}; name one of them in `clientId`",
            details={"clients": found[:MAX_CANDIDATES], "total": len(found)},
        )
    return found[0]


def _named(target: str, action: str | None) -> str:
    return f"`{target}`" if action is None else f"`{target}` with the action `{action}`"
