"""Clients as a mirror knows them, without NATS."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from protocol.discovery import Client
from protocol.records import ClientRecord, read_capabilities
from protocol.runtime.clients.lost import LostClients
from protocol.runtime.clients.replica import Listener, ReplicaEntry
from protocol.subjects import client_key


def client(client_id: str, *capabilities: Any, user: str = "ann", tenant: str = "default", **fields: Any) -> Client:
    """Return a client that offers these; `fields` are the record's: `gateway_id="gw-2"`."""
    raw = msgspec.Raw(msgspec.json.encode(capabilities))
    known: dict[str, Any] = {"gateway_id": "gw-1", "revision": 1, "connected_at": "2026-01-01T00:00:00.000Z"}
    record = ClientRecord(client_id=client_id, tenant=tenant, principal=user, capabilities=raw, **(known | fields))
    return Client(record, read_capabilities(raw))


class Known:
    """A mirror with these clients, whose listeners hear of every change."""

    def __init__(self, *clients: Client, filled: bool = True, listeners: tuple[Listener, ...] = ()) -> None:
        self.filled = asyncio.Event()
        self.lost = LostClients()
        self._tenants: dict[str, dict[str, Client]] = {}
        self._listeners = listeners
        for each in clients:
            self.put(each)
        if filled:
            self.filled.set()

    def clients(self, tenant: str) -> Mapping[str, Client]:
        """Return a tenant's clients by id."""
        return self._tenants.get(tenant, {})

    def put(self, new: Client) -> None:
        """Have a client, or its new record."""
        record = new.record
        clients = self._tenants.setdefault(record.tenant, {})
        before = clients.get(record.client_id)
        clients[record.client_id] = new
        self._tell(record.tenant, record.client_id, before, new)

    def remove(self, client_id: str, tenant: str = "default", *, lost_at: float | None = None) -> None:
        """Have a client go, by its own will or lost at this time."""
        gone = self._tenants[tenant].pop(client_id)
        if lost_at is not None:
            self.lost.add(gone, lost_at)
        self._tell(tenant, client_id, gone, None)

    def _tell(self, tenant: str, client_id: str, before: Client | None, after: Client | None) -> None:
        entries = [ReplicaEntry(1, client=each) if each else None for each in (before, after)]
        for listener in self._listeners:
            listener(client_key(tenant, client_id), *entries)
