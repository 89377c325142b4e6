"""Stores of tenants as a test has them, made like a registry's."""

from typing import Any

from nats.aio.client import Client as NatsClient

from protocol import codec
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams.stores import TenantStore, audit_of, events_of, keys_of
from protocol.runtime.streams.tenant_stores import REFUSED_SECONDS, TenantStores
from registry.stores import configurations

EVENTS_STREAM, AUDIT_STREAM, KEYS_STREAM = (of("default").stream for of in (events_of, audit_of, keys_of))


async def make_store(client: NatsClient, store: TenantStore, **more: Any) -> None:
    """Make a store as a registry does."""
    config = configurations.store(store, 1) | more
    await client.request(f"$JS.API.STREAM.CREATE.{store.stream}", codec.encode(config), timeout=2)


async def stores_of(connection: Connection, refused_seconds: float = REFUSED_SECONDS) -> TenantStores:
    """Return what a process knows of stores, at its start."""
    stores = TenantStores(connection, refused_seconds)
    await stores.start()
    return stores
