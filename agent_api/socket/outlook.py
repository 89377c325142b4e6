"""The mirror's news for all sockets that watch what clients offer; each record is encoded once for all of them."""

import asyncio
from collections.abc import Iterable

import msgspec

from agent_api.socket.sight import Sight
from protocol import codec, subjects
from protocol.access import Principal
from protocol.discovery import Client
from protocol.runtime.replica import Entry

MAX_ENCODED_BYTES = 8 * 1024 * 1024


class Watch:
    """One agent's picture, and the news that there is something to tell of it."""

    def __init__(self, sight: Sight, tenant: str) -> None:
        self.sight = sight
        self.tenant = tenant
        self.news = asyncio.Event()
        self.news.set()

    def look_at(self, *client_ids: str) -> None:
        """Note that something has become of clients."""
        self.sight.look_at(client_ids)
        self.news.set()

    def change_principal(self, principal: Principal, client_ids: Iterable[str]) -> None:
        """Go on with a renewed token's limits; `client_ids` are all that its tenant has now."""
        self.sight.change_principal(principal, client_ids)
        self.news.set()


class Outlook:
    """All watches of a process. `observe` must hear all of the mirror's news."""

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}
        self._encoded: dict[str, tuple[Client, msgspec.Raw]] = {}
        self._encoded_bytes = 0

    def observe(self, key: str, before: Entry | None, after: Entry | None) -> None:
        """Take a piece of the mirror's news."""
        address = subjects.parse_key(key) if self._watches else None
        if address is not None:
            for watch in self._watches.get(address.tenant, ()):
                watch.look_at(address.client_id)

    def open(self, ident: str, principal: Principal, client_ids: Iterable[str]) -> Watch:
        """Begin a watch with a picture of nothing; `client_ids` are all that the principal's tenant has now."""
        watch = Watch(Sight(ident, principal, self._encode), principal.tenant)
        watch.look_at(*client_ids)
        self._watches.setdefault(principal.tenant, set()).add(watch)
        return watch

    def close(self, watch: Watch) -> None:
        """End a watch."""
        self._watches[watch.tenant].discard(watch)
        if not self._watches[watch.tenant]:
            del self._watches[watch.tenant]
            self._encoded.clear()
            self._encoded_bytes = 0

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
