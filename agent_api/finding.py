"""What the mirror answers: a principal's clients, one of them, the only one of several that fit."""

import asyncio
import heapq
from collections.abc import Mapping, Sequence
from typing import Protocol

from protocol.access import Principal, may, view_of
from protocol.discovery import Client
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


def only_client(found: Sequence[str], target: str, action: str | None) -> str:
    """Return the one id among those of the clients that fit.

    Raises `AmbiguousClient` naming up to 100 of them where there are several, `UnknownCapability` where there is none.
    """
    if not found:
        raise nobody_offers(target, action)
    if len(found) > 1:
        raise AmbiguousClient(
            f"{len(found)} clients offer {_named(target, action)}; name one of them in `clientId`",
            details={"clients": heapq.nsmallest(MAX_CANDIDATES, found), "total": len(found)},
        )
    return found[0]


def nobody_offers(target: str, action: str | None) -> UnknownCapability:
    """Return the error that tells of a target without a client."""
    return UnknownCapability(f"no connected client that this token may use offers {_named(target, action)}")


def _named(target: str, action: str | None) -> str:
    return f"`{target}`" if action is None else f"`{target}` with the action `{action}`"
