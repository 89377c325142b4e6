"""Searches in the mirror: the clients of a principal, and one client by its id."""

import asyncio
import heapq
from collections.abc import Mapping, Sequence
from typing import Protocol

from protocol.access import Principal, may, view_of
from protocol.discovery import Client
from protocol.errors import AmbiguousClient, ClientNotFound, Unavailable, UnknownCapability
from protocol.runtime.clients.lost import LostClients
from protocol.subjects import ClientAddress

MAX_CANDIDATES = 100


class KnownClients(Protocol):
    """A source of the connected clients and the `lost` ones; `filled` is set when the first list is complete."""

    filled: asyncio.Event
    lost: LostClients

    def clients(self, tenant: str) -> Mapping[str, Client]:
        """Return a tenant's clients by id."""


def clients_of(known: KnownClients, principal: Principal) -> Mapping[str, Client]:
    """Return the clients of the principal's tenant. Raises `Unavailable` before the mirror's first list is complete."""
    if not known.filled.is_set():
        raise Unavailable("the list of clients has not been read yet; try again in a moment")
    return known.clients(principal.tenant)


def visible_client(known: KnownClients, principal: Principal, client_id: str, now: float) -> Client:
    """Return a client that the principal may see.

    Raises `Unavailable` for one that was lost less than 30 s ago, as the registry does, and `ClientNotFound` for any
    other.
    """
    client = clients_of(known, principal).get(client_id)
    if client is None and known.lost.knows(principal, ClientAddress(principal.tenant, client_id), now):
        raise Unavailable.while_client_is_away()
    if client is None or not may(principal, view_of(client.record)):
        raise ClientNotFound
    return client


def ambiguous(clients: Mapping[str, Client], found: Sequence[str], target: str, action: str | None) -> AmbiguousClient:
    """Return the error that names up to 100 fitting clients and their users."""
    named = heapq.nsmallest(MAX_CANDIDATES, found)
    return several_offer(
        named, len(found), sorted({clients[client_id].record.user for client_id in named}), target, action
    )


def several_offer(
    named: Sequence[str], total: int, users: Sequence[str], target: str, action: str | None
) -> AmbiguousClient:
    """Return the error for `total` fitting clients, which lists the given ones."""
    whose = "one user" if len(users) == 1 else "several users"
    return AmbiguousClient(
        f"{total} clients of {whose} offer {_named(target, action)}; name one of them in `clientId`, or say `any` "
        "with the user in `match`, to have one of that user's chosen",
        details={"clients": named, "total": total, "users": users},
    )


def nobody_offers(target: str, action: str | None) -> UnknownCapability:
    """Return the error for a target that no client offers."""
    return UnknownCapability(f"no connected client that this token may use offers {_named(target, action)}")


def were_lost(target: str, action: str | None) -> Unavailable:
    """Return the error for a target whose clients are expected back."""
    return Unavailable(f"the clients that offer {_named(target, action)} were lost a moment ago; try again in a moment")


def _named(target: str, action: str | None) -> str:
    return f"`{target}`" if action is None else f"`{target}` with the action `{action}`"
