"""The stores of a tenant: its events, its audit and its idempotency keys, each a stream of its own.

A registry makes a store at its first use and lets it grow. Because each tenant has its own, none can fill another's.
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
    """Asks any registry to make a store, or to let it grow up to the bound in the settings."""

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
