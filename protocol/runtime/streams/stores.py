"""The stores of a tenant: its events, its audit and its idempotency keys, each a stream of its own.

A registry makes a store if somebody needs it for the first time, and lets it grow. So whatever one tenant does, it
fills its own stores alone.
"""

from typing import Literal, NamedTuple

import msgspec

from protocol import subjects

StoreKind = Literal["events", "audit", "keys"]


class TenantStore(NamedTuple):
    """One of the streams of a tenant."""

    kind: StoreKind
    tenant: str

    @property
    def stream(self) -> str:
        """The name of the stream."""
        return subjects.store(self.kind, self.tenant)

    @property
    def captured(self) -> list[str]:
        """The subjects that the stream keeps."""
        root = f"{subjects.ROOT}.{self.tenant}"
        match self.kind:
            case "events":
                return [f"{root}.event.>", f"{root}.client.>"]
            case "audit":
                return [f"{root}.audit.>"]
            case "keys":
                return [subjects.idempotency_key(self.tenant, "*")]


class StoreRequest(msgspec.Struct, frozen=True):
    """What a process asks of any registry: that a store exists, and has room if the setting allows it."""

    tenant: str
    store: StoreKind


def events_of(tenant: str) -> TenantStore:
    """Return the store of a tenant's events and of the changes of its clients."""
    return TenantStore("events", tenant)


def audit_of(tenant: str) -> TenantStore:
    """Return the store of a tenant's audit records."""
    return TenantStore("audit", tenant)


def keys_of(tenant: str) -> TenantStore:
    """Return the store of a tenant's idempotency keys."""
    return TenantStore("keys", tenant)
