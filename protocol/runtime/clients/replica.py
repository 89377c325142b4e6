"""A mirror's copy of the clients bucket: the records by tenant. Sans-I/O.

It takes the stream's messages in order. A new listing replaces the known entries one by one, and removes those that it
did not contain only at its end. So a mirror is never empty during a new listing.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from weakref import WeakValueDictionary

import msgspec

from protocol import codec, subjects
from protocol.discovery import Client
from protocol.errors import BridgeError
from protocol.records import CapabilityList, ClientRecord, read_capabilities

log = logging.getLogger(__name__)
_records = msgspec.json.Decoder(ClientRecord)
_NO_CLIENTS: Mapping[str, Client] = MappingProxyType({})


class ReplicaEntry(msgspec.Struct, frozen=True):
    """A key's present value: a client, or the raw `data` of one of our own keys."""

    revision: int
    client: Client | None = None
    data: bytes = b""


Listener = Callable[[str, ReplicaEntry | None, ReplicaEntry | None], None]


class Replica:
    """The entries of the bucket. `listeners` get each change: the key, the former entry, the new entry."""

    def __init__(self, *listeners: Listener) -> None:
        self.revision = 0
        self._listeners = listeners
        self._entries: dict[str, ReplicaEntry] = {}
        self._tenants: dict[str, dict[str, Client]] = {}
        self._unlisted: set[str] = set()
        self._life = ""
        self._former_life = False
        self._capabilities: WeakValueDictionary[bytes, CapabilityList] = WeakValueDictionary()

    def clients(self, tenant: str) -> Mapping[str, Client]:
        """Return a tenant's clients by their ids."""
        return self._tenants.get(tenant, _NO_CLIENTS)

    def tenants(self) -> Iterable[str]:
        """Return the tenants that have clients."""
        return self._tenants

    def entry(self, key: str) -> ReplicaEntry | None:
        """Return the entry of a key, or None."""
        return self._entries.get(key)

    def begin(self, life: str, last_sequence: int) -> None:
        """Begin a listing of the stream `life`.

        If this is another stream, or an older state of the same, its entries replace known ones of any revision.
        """
        self._former_life = life != self._life or last_sequence < self.revision
        if self._former_life:
            self.revision = 0
        self._life = life
        self._unlisted = set(self._entries)

    def put(self, key: str, revision: int, data: bytes) -> None:
        """Take a value. One that cannot be read is logged and counts as absent."""
        if self._is_news(key, revision):
            self._replace(key, self._read(key, revision, data))

    def remove(self, key: str, revision: int) -> Client | None:
        """Remove a key. Return its client, if it had one."""
        before = self._entries.get(key)
        if not self._is_news(key, revision):
            return None
        self._replace(key, None)
        return before.client if before else None

    def complete(self) -> None:
        """End the listing, and remove the entries that it did not contain."""
        for key in self._unlisted:
            self._replace(key, None)
        self._unlisted = set()

    def _is_news(self, key: str, revision: int) -> bool:
        """Tell whether a message is newer than the known entry. A listing mostly repeats known entries."""
        self.revision = max(self.revision, revision)
        known = self._entries.get(key)
        former = self._former_life and key in self._unlisted
        self._unlisted.discard(key)
        return known is None or former or revision > known.revision

    def _replace(self, key: str, entry: ReplicaEntry | None) -> None:
        before = self._entries.pop(key, None)
        if entry is not None:
            self._entries[key] = entry
        self._place(before.client if before else None, entry.client if entry else None)
        for listener in self._listeners:
            listener(key, before, entry)

    def _place(self, before: Client | None, after: Client | None) -> None:
        if after is not None:
            self._tenants.setdefault(after.record.tenant, {})[after.record.client_id] = after
        elif before is not None:
            tenant = self._tenants[before.record.tenant]
            del tenant[before.record.client_id]
            if not tenant:
                del self._tenants[before.record.tenant]

    def _read(self, key: str, revision: int, data: bytes) -> ReplicaEntry | None:
        address = subjects.parse_key(key)
        if address is None:
            return ReplicaEntry(revision, data=data)
        try:
            record = codec.decode(_records, data)
            if (record.tenant, record.client_id) != address:
                raise BridgeError("the record is another client's")
            return ReplicaEntry(revision, self._client(record))
        except BridgeError as exc:
            log.warning("left out the record %s: %s", key, exc.message)
            return None

    def _client(self, record: ClientRecord) -> Client:
        """Return a client that shares its list with all that sent the same: thousands run one application."""
        content = hashlib.sha256(record.capabilities).digest()
        capabilities = self._capabilities.get(content)
        if capabilities is None:
            capabilities = self._capabilities[content] = read_capabilities(record.capabilities)
        return Client(msgspec.structs.replace(record, capabilities=capabilities.raw), capabilities)
