"""The NATS user that an agent becomes by its token: its name, its inbox, and the subjects that are open to it.

Two agents of a tenant have different inboxes, so that neither can read the other's replies. An agent gets no events
over NATS if its token limits which clients it sees, because NATS cannot filter events by user or application.
"""

import hashlib
from typing import NamedTuple

from protocol.access import ADMIN, Principal
from protocol.errors import PermissionDenied
from protocol.subjects import ROOT
from protocol.subjects import store as stream_of

HASH_CHARS = 32
LOGINS_METADATA = "logins"  # in a registry's `$SRV` metadata: "on" if it decides logins of agents


class Permissions(NamedTuple):
    """The subjects that a user may publish and subscribe to."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def user_name(tenant: str, sub: str) -> str:
    """Return the name of an agent's NATS user, `agent_T_H`: H is the first half of the SHA-256 of its `sub`, in hex."""
    return f"agent_{tenant}_{hashlib.sha256(sub.encode()).hexdigest()[:HASH_CHARS]}"


def inbox_prefix(tenant: str, sub: str) -> str:
    """Return the prefix of the reply subjects that an agent may subscribe to."""
    return f"_INBOX.{user_name(tenant, sub)}"


def permissions_of(principal: Principal) -> Permissions:
    """Return the subjects that a principal may use on NATS. All but an admin's `$SRV` and `$JS` are in its tenant.

    Raises `PermissionDenied` for an application's token, because applications connect to a gateway.
    """
    if not principal.is_agent:
        raise PermissionDenied("the token of an application opens a gateway, not NATS")
    tenant = f"{ROOT}.{principal.tenant}"
    publish = [f"{tenant}.command.*", f"{tenant}.registry.*"]
    subscribe = [f"{inbox_prefix(principal.tenant, principal.sub)}.>"]
    if not principal.is_limited:
        subscribe += [f"{tenant}.event.>", f"{tenant}.client.>"]
    if principal.role == ADMIN:
        audit_stream = stream_of("audit", principal.tenant)
        publish += ["$SRV.>", *(f"$JS.API.{verb}.{audit_stream}" for verb in ("STREAM.INFO", "DIRECT.GET"))]
        subscribe.append(f"{tenant}.audit.>")
    return Permissions(tuple(publish), tuple(subscribe))
