"""Who may do what: one pure function, asked by the gateway, the registry and the agent API alike."""

import msgspec

from protocol.errors import ClientNotFound, PermissionDenied
from protocol.records import ClientRecord, Offer

APP, AGENT, ADMIN = "app", "agent", "admin"
ROLES = frozenset({APP, AGENT, ADMIN})
EVERY_PERMISSION = "*"


class Principal(msgspec.Struct, frozen=True):
    """Who a verified token speaks for. A limit of None does not limit; `expires_at` is in Unix seconds."""

    sub: str
    role: str
    tenant: str
    expires_at: float
    permissions: frozenset[str] = frozenset()
    users: frozenset[str] | None = None
    apps: frozenset[str] | None = None
    clients: frozenset[str] | None = None


class ClientView(msgspec.Struct, frozen=True):
    """What of a client decides who may see it."""

    tenant: str
    client_id: str
    user: str
    app: str


def view_of(record: ClientRecord) -> ClientView:
    """Return what of a record decides who may see it."""
    return ClientView(record.tenant, record.client_id, record.user, record.app_name)


def may(principal: Principal, client: ClientView, capability: Offer | None = None) -> bool:
    """Tell whether an agent may see a client and, where one is given, use one of its capabilities."""
    if principal.role not in (AGENT, ADMIN) or principal.tenant != client.tenant:
        return False
    return (
        _within(principal.users, client.user)
        and _within(principal.apps, client.app)
        and _within(principal.clients, client.client_id)
        and (capability is None or _grants(principal, capability.permissions))
    )


def require(principal: Principal, client: ClientView, capability: Offer | None = None) -> None:
    """Raise where `may()` says no.

    A client that may not be seen does not exist (`ClientNotFound`); `PermissionDenied` is only for a capability of a
    client that may.
    """
    if may(principal, client, capability):
        return
    if not may(principal, client):
        raise ClientNotFound
    raise PermissionDenied("this token lacks a permission that the capability requires")


def require_agent(principal: Principal) -> None:
    """Raise `PermissionDenied` for a token that is not an agent's or an administrator's."""
    if principal.role not in (AGENT, ADMIN):
        raise PermissionDenied("this needs a token with the role agent or admin")


def require_admin(principal: Principal) -> None:
    """Raise `PermissionDenied` for a token that is not an administrator's."""
    if principal.role != ADMIN:
        raise PermissionDenied("this needs a token with the role admin")


def _within(limit: frozenset[str] | None, value: str) -> bool:
    return limit is None or value in limit


def _grants(principal: Principal, needed: frozenset[str]) -> bool:
    return needed <= principal.permissions or EVERY_PERMISSION in principal.permissions
