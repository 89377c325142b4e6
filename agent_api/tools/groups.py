"""The tools of one tenant's clients, each with its clients and its age. Sans-I/O.

Clients with the same tool form a group, and clients with the same application share one list of groups. The age of a
group is that of its oldest client, even after that has gone. A group without clients is kept for a while, so that a
page that reloads does not lose its tools' names to a younger group.
"""

import bisect
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from weakref import WeakValueDictionary

import msgspec

from agent_api.tools.definitions import ToolDefinition, definitions_of
from agent_api.tools.names import SUFFIX_DIGITS, digits_of, plain_name
from protocol import codec
from protocol.discovery import Client
from protocol.errors import InvalidRequest, Overloaded
from protocol.shares import Piece, Shares

MAX_REMEMBERED = 10_000
MAX_CONTESTED = 16  # tools of one name; the oldest count
NOBODY: frozenset[str] = frozenset()
_items = msgspec.json.Decoder(list[msgspec.Raw])

Age = tuple[str, str]


class ToolGroup:
    """A tool and the lists that contain it, each with its required permissions."""

    __slots__ = ("__weakref__", "definition", "lists", "piece", "since")

    def __init__(self, definition: ToolDefinition, since: str, piece: Piece) -> None:
        self.definition = definition
        self.since = since
        self.piece = piece
        self.lists: dict[OfferedList, frozenset[str]] = {}

    @property
    def age(self) -> Age:
        """The sort key: older groups first, in the same order in every process."""
        return self.since, self.definition.digest


class OfferedList:
    """The tools of one list of capabilities, and the clients with exactly this list."""

    __slots__ = ("clients", "groups", "items", "key")

    def __init__(self, key: bytes, items: list["_Item"]) -> None:
        self.key = key
        self.items = items
        self.groups: list[ToolGroup] = []
        self.clients: dict[str, Client] = {}


class _Item:
    """One capability, read once for all lists that contain it."""

    __slots__ = ("__weakref__", "definitions")

    def __init__(self, definitions: tuple[ToolDefinition, ...]) -> None:
        self.definitions = definitions


class TenantTools:
    """All groups of a tenant. `revision` counts the changes. Names and order depend on the groups alone.

    A tool counts in `room` for the first user that offers it. Without room a capability is not a tool.
    """

    def __init__(self, room: Shares) -> None:
        self.revision = 0
        self._room = room
        self.groups: dict[str, ToolGroup] = {}
        self._by_name: dict[str, list[ToolGroup]] = {}  # by the name without digits, the oldest first
        self._by_digits: dict[str, list[ToolGroup]] = {}  # by the first digits of the digest, the oldest first
        self.clients: dict[str, OfferedList] = {}
        self._ordered: list[ToolGroup] = []
        self._lists: dict[bytes, OfferedList] = {}
        self._items: WeakValueDictionary[bytes, _Item] = WeakValueDictionary()
        self._remembered: OrderedDict[str, str] = OrderedDict()
        self._contested: set[str] = set()

    def __iter__(self) -> Iterator[ToolGroup]:
        """Yield all groups, oldest first."""
        return iter(self._ordered)

    def claimants(self, name: str) -> list[ToolGroup]:
        """Return the groups that may have a name, oldest first."""
        plain = self._by_name.get(name, [])
        digits = digits_of(name)
        if digits is None:
            return plain
        suffixed = [group for group in self._by_digits.get(digits, ()) if name in group.definition.names]
        return sorted({*plain, *suffixed}, key=_age_of)

    def ages(self, digests: Iterable[str]) -> dict[str, str]:
        """Return the times since which these tools have existed. Unknown tools are left out."""
        found = {digest: self.groups[digest].since for digest in digests if digest in self.groups}
        return {digest: self._remembered[digest] for digest in digests if digest in self._remembered} | found

    def take_contested(self) -> list[str]:
        """Return the tools that share a wanted name with another tool since the last call."""
        contested, self._contested = self._contested, set()
        return sorted(contested & self.groups.keys())

    def learn(self, digest: str, since: str) -> None:
        """Set the age of a tool, if it seemed younger."""
        group = self.groups.get(digest)
        if group is not None and since < group.since:
            self.revision += 1
            self._grow_older(group, since)

    def close(self) -> None:
        """Release all room. Do not use the object afterwards."""
        for group in self._ordered:
            group.piece.release()

    def put(self, client_id: str, client: Client | None) -> None:
        """Set a client's present record, or None if it is gone."""
        self.revision += 1
        known = self.clients.pop(client_id, None)
        offered = None if client is None else self._offered(client)
        if client is not None and offered is not None:
            self.clients[client_id] = offered
            offered.clients[client_id] = client
            for group in offered.groups:
                if client.record.connected_at < group.since:
                    self._grow_older(group, client.record.connected_at)
        if known is not None and known is not offered:
            del known.clients[client_id]
            if not known.clients:
                self._withdraw(known)

    def _offered(self, client: Client) -> OfferedList:
        key = client.capabilities.fingerprint
        offered = self._lists.get(key)
        if offered is None:
            offered = self._lists[key] = OfferedList(key, [self._item(raw) for raw in _split(client)])
            self._offer(offered, client)
        return offered

    def _item(self, raw: msgspec.Raw) -> _Item:
        key = hashlib.sha256(raw).digest()
        item = self._items.get(key)
        if item is None:
            item = self._items[key] = _Item(definitions_of(raw))
        return item

    def _offer(self, offered: OfferedList, client: Client) -> None:
        for item in offered.items:
            for definition in item.definitions:
                offer = client.capabilities.find(definition.target)
                group = None if offer is None else self._group(definition, client)
                if offer is not None and group is not None and offer.offers(definition.action):
                    group.lists[offered] = offer.permissions
                    offered.groups.append(group)

    def _group(self, definition: ToolDefinition, client: Client) -> ToolGroup | None:
        """Return the group of a tool, a new one if there is room for it."""
        group = self.groups.get(definition.digest)
        if group is None:
            try:
                piece = self._room.ask((client.record.tenant, client.record.user), 1)
            except Overloaded:
                return None
            connected_at = client.record.connected_at
            since = min(connected_at, self._remembered.pop(definition.digest, connected_at))
            group = self.groups[definition.digest] = ToolGroup(definition, since, piece)
            self._enter(group)
            self._note_contest(group)
        return group

    def _note_contest(self, group: ToolGroup) -> None:
        definition = group.definition
        rivals = self._by_name.get(plain_name(definition.target, definition.action) or "", ())
        if len(rivals) > 1:
            self._contested.update(rival.definition.digest for rival in rivals[:MAX_CONTESTED])
            self._contested.add(definition.digest)

    def _withdraw(self, offered: OfferedList) -> None:
        """Forget a list without clients, and the groups that are in no other list."""
        del self._lists[offered.key]
        for group in offered.groups:
            group.lists.pop(offered, None)
            if not group.lists and self.groups.pop(group.definition.digest, None) is not None:
                self._leave(group)
                self._remember(group)
                group.piece.release()
        offered.groups.clear()

    def _remember(self, group: ToolGroup) -> None:
        self._remembered[group.definition.digest] = group.since
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    def _grow_older(self, group: ToolGroup, since: str) -> None:
        self._leave(group)
        group.since = since
        self._enter(group)

    def _enter(self, group: ToolGroup) -> None:
        bisect.insort(self._ordered, group, key=_age_of)
        for table, key in self._places(group):
            bisect.insort(table.setdefault(key, []), group, key=_age_of)

    def _leave(self, group: ToolGroup) -> None:
        _remove(self._ordered, group)
        for table, key in self._places(group):
            _remove(table[key], group)
            if not table[key]:
                del table[key]

    def _places(self, group: ToolGroup) -> Iterator[tuple[dict[str, list[ToolGroup]], str]]:
        definition = group.definition
        plain = plain_name(definition.target, definition.action)
        if plain is not None:
            yield self._by_name, plain
        yield self._by_digits, definition.digest[: SUFFIX_DIGITS[0]]


def _age_of(group: ToolGroup) -> Age:
    return group.age


def _remove(groups: list[ToolGroup], group: ToolGroup) -> None:
    del groups[bisect.bisect_left(groups, group.age, key=_age_of)]


def _split(client: Client) -> list[msgspec.Raw]:
    try:
        return codec.decode(_items, codec.raw_bytes(client.capabilities.raw))
    except InvalidRequest:
        return []
