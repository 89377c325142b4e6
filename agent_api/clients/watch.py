"""Passes the mirror's changes to all sockets that watch capabilities.

Agents with the same limits share their visible clients, and each record is encoded once for all of them.
"""

import asyncio
from collections.abc import Iterable

import msgspec

from agent_api.clients.changes import ClientChanges
from agent_api.clients.overview import WrittenCapabilities
from agent_api.clients.overview_turns import OverviewTurns
from agent_api.clients.visible import Scope, VisibleClients, scope_of
from protocol import codec, subjects
from protocol.access import Principal
from protocol.discovery import Client
from protocol.runtime.clients.replica import ReplicaEntry

MAX_ENCODED_BYTES = 8 * 1024 * 1024


class ClientWatch:
    """One agent's picture of its clients, and the event that wakes its sender."""

    def __init__(self, changes: ClientChanges, visible: VisibleClients, scope: Scope) -> None:
        self.changes = changes
        self.visible = visible
        self.scope = scope
        self.news = asyncio.Event()
        self.news.set()

    @property
    def tenant(self) -> str:
        """The tenant of the watched clients."""
        return self.scope.tenant

    def note(self, client_id: str, *, there: bool) -> None:
        """Note that a client has changed. `there`: it was visible before."""
        self.changes.note(client_id, there=there)
        self.news.set()

    def turn_to(self, visible: VisibleClients, scope: Scope) -> None:
        """Go on with another scope."""
        self.scope = scope
        self.visible = visible
        self.changes.turn_to(visible)
        self.news.set()


class ClientWatches:
    """All watches of a process. `observe` must get all of the mirror's changes."""

    def __init__(self) -> None:
        self.written = WrittenCapabilities()
        self.overview_turns = OverviewTurns()
        self._by_scope: dict[str, dict[Scope, VisibleClients]] = {}
        self._encoded: dict[str, tuple[Client, msgspec.Raw]] = {}
        self._encoded_bytes = 0

    def observe(self, key: str, before: ReplicaEntry | None, after: ReplicaEntry | None) -> None:
        """Take a change from the mirror."""
        address = subjects.parse_key(key) if self._by_scope else None
        if address is not None:
            for visible in self._by_scope.get(address.tenant, {}).values():
                visible.change(address.client_id, after.client if after else None)

    def open(self, principal: Principal, client_ids: Iterable[str]) -> ClientWatch:
        """Begin a watch with an empty picture. `client_ids` are all clients of the principal's tenant."""
        scope = scope_of(principal)
        visible = self._visible(scope, principal, client_ids)
        watch = ClientWatch(ClientChanges(visible, self._encode), visible, scope)
        visible.observers.add(watch)
        return watch

    def change_principal(self, watch: ClientWatch, principal: Principal, client_ids: Iterable[str]) -> None:
        """Apply a fresh token's limits. `client_ids` are all clients of the principal's tenant."""
        scope = scope_of(principal)
        if scope == watch.scope:
            return
        visible = self._visible(scope, principal, client_ids)
        visible.observers.add(watch)
        self.close(watch)
        watch.turn_to(visible, scope)

    def close(self, watch: ClientWatch) -> None:
        """End a watch. A scope without watches is forgotten."""
        by_scope = self._by_scope[watch.tenant]
        by_scope[watch.scope].observers.remove(watch)
        if not by_scope[watch.scope].observers:
            del by_scope[watch.scope]
        if not by_scope:
            del self._by_scope[watch.tenant]
        if not self._by_scope:
            self._encoded.clear()
            self._encoded_bytes = 0
            self.written.clear()

    def _visible(self, scope: Scope, principal: Principal, client_ids: Iterable[str]) -> VisibleClients:
        by_scope = self._by_scope.setdefault(scope.tenant, {})
        if scope not in by_scope:
            by_scope[scope] = VisibleClients(principal, client_ids)
        return by_scope[scope]

    def _encode(self, client: Client) -> msgspec.Raw:
        key = subjects.client_key(client.record.tenant, client.record.client_id)
        found = self._encoded.get(key)
        if found is not None and found[0] is client:
            return found[1]
        record = msgspec.Raw(codec.encode(client.record))
        self._encoded_bytes += len(memoryview(record))
        if self._encoded_bytes > MAX_ENCODED_BYTES:
            self._encoded.clear()
            self._encoded_bytes = len(memoryview(record))
        self._encoded[key] = client, record
        return record
