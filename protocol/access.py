"""Access control: one pure function that the gateway, the registry and the agent API all ask."""

import msgspec

from protocol.errors import ClientNotFound, PermissionDenied
from protocol.records import ClientRecord, Offer

APP, AGENT, ADMIN = "app", "agent", "admin"
ROLES = frozenset({APP, AGENT, ADMIN})
EVERY_PERMISSION = "*"


class Principal(msgspec.Struct, frozen=True):
    """The holder of a verified token. A limit of None allows everything; `expires_at` is in Unix seconds.

    `name` is for people to read and decides nothing.
    """

    sub: str
    role: str
    tenant: str
    expires_at: float
    permissions: frozenset[str] = frozenset()
    users: frozenset[str] | None = None
    apps: frozenset[str] | None = None
    clients: frozenset[str] | None = None
    name: str | None = None

    @property
    def is_agent(self) -> bool:
        """Whether it may send commands. Administrators may, too."""
        return self.role in (AGENT, ADMIN)

    @property
    def is_limited(self) -> bool:
        """Whether the token limits its holder to some of the tenant's clients."""
        return any(limit is not None for limit in (self.users, self.apps, self.clients))


class ClientView(msgspec.Struct, frozen=True):
    """The parts of a client that decide which agents may see it."""

    tenant: str
    client_id: str
    user: str
    app: str


def view_of(record: ClientRecord) -> ClientView:
    """Return the parts of a record that decide which agents may see it."""
    return ClientView(record.tenant, record.client_id, record.user, record.app_name)


def may(principal: Principal, client: ClientView, capability: Offer | None = None) -> bool:
    """Tell whether an agent may see a client and, if a capability is given, use it."""
    if not principal.is_agent or principal.tenant != client.tenant:
        return False
    return (
        _within(principal.users, client.user)
        and _within(principal.apps, client.app)
        and _within(principal.clients, client.client_id)
        and (capability is None or _grants(principal, capability.permissions))
    )


def require(principal: Principal, client: ClientView, capability: Offer | None = None) -> None:
    """Raise `ClientNotFound` or `PermissionDenied` unless `may()` allows it.

    `ClientNotFound` hides a client that the agent may not see. `PermissionDenied` is only for a capability of a visible
    client.
    """
    if may(principal, client, capability):
        return
    if not may(principal, client):
        raise ClientNotFound
    raise PermissionDenied("this token lacks a permission that the capability requires")


def require_agent(principal: Principal) -> None:
    """Raise `PermissionDenied` for a token that is not an agent's or an administrator's."""
    if not principal.is_agent:
        raise PermissionDenied("this needs a token with the role agent or admin")


def require_admin(principal: Principal) -> None:
    """Raise `PermissionDenied` for a token that is not an administrator's."""
    if principal.role != ADMIN:
        raise PermissionDenied("this needs a token with the role admin")


def _within(limit: frozenset[str] | None, value: str) -> bool:
    return limit is None or value in limit


def _grants(principal: Principal, needed: frozenset[str]) -> bool:
    return needed <= principal.permissions or EVERY_PERMISSION in principal.permissions
