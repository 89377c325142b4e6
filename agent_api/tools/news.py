"""The mirror's changes for tenants with requests for tools. The next request reads them."""

import asyncio
from collections.abc import Generator

from agent_api.tools.groups import TenantTools
from agent_api.tools.slices import Gate, Slices
from protocol import subjects
from protocol.discovery import Client
from protocol.runtime.clients.replica import ReplicaEntry
from protocol.shares import Shares

MAX_TOOLS = 500_000  # different tools of all tenants; each takes 1.2 KB and its schema


class TenantNews:
    """The tools of a tenant, its unread changes, and the tasks that wait for more."""

    def __init__(self, clients: dict[str, Client | None], room: Shares, now: float) -> None:
        self.tools = TenantTools(room)
        self.unread = clients
        self.gate = Gate()
        self._change: Generator[None, None, None] | None = None  # that was interrupted
        self.used_at = now
        self.watchers: set[asyncio.Event] = set()

    @property
    def is_whole(self) -> bool:
        """Whether no change has been made by halves."""
        return self._change is None

    @property
    def is_read(self) -> bool:
        """Whether there is nothing to read."""
        return self._change is None and not self.unread

    async def read(self) -> None:
        """Make all changes, in slices. Must be called inside `gate.writing()`; cancelled, it can be called again."""
        slices = Slices()
        while not self.is_read:
            if self._change is None:
                self._change = self.tools.change(*self.unread.popitem())
            await slices.run(self._change)
            self._change = None

    def note(self, client_id: str, client: Client | None) -> None:
        """Keep a client's present record (None: it is gone) for the next request."""
        if client is None and client_id not in self.tools.clients:
            self.unread.pop(client_id, None)
        else:
            self.unread[client_id] = client
        for watcher in self.watchers:
            watcher.set()


class ToolNews:
    """The tenants with requests for tools. `observe` must get all of the mirror's changes."""

    def __init__(self) -> None:
        self.tenants: dict[str, TenantNews] = {}
        self.room = Shares(MAX_TOOLS, "too many different tools")

    def counters(self) -> dict[str, int]:
        """Return the counter of `/metrics`: the used part of the room for tools."""
        return {"sharesUsedPercent:tools": self.room.used_percent}

    def observe(self, key: str, before: ReplicaEntry | None, after: ReplicaEntry | None) -> None:
        """Take a change from the mirror."""
        address = subjects.parse_key(key) if self.tenants else None
        tenant = self.tenants.get(address.tenant) if address else None
        if address is not None and tenant is not None:
            tenant.note(address.client_id, after.client if after else None)
