"""The tools of one tenant's clients, each with its clients and its age. Sans-I/O.

A change is a generator, because a client may offer thousands of tools: it yields wherever it may pause. Until it has
ended, nobody may look.

Clients that offer the same tool are one group; thousands that run one application share one list of groups. A group is
as old as its oldest client was, and is remembered for a while without clients: a page that reloads, and so is gone for
a moment, does not lose its tools' names to a younger group.
"""

import bisect
import hashlib
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from agent_api.tools.definitions import ToolDefinition, definitions_of
from agent_api.tools.names import SUFFIX_DIGITS, digits_of, plain_name
from agent_api.tools.slices import at_once
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
    """The tools of one list of capabilities, and the clients that registered exactly this one, by their applications.

    `items` keep what was read of the capabilities for as long as some list has it.
    """

    __slots__ = ("apps", "groups", "items", "key")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.items: list[_Item] = []
        self.groups: list[ToolGroup] = []
        self.apps: dict[str, dict[str, Client]] = {}

    def add(self, client: Client) -> None:
        """Count a client in."""
        self.apps.setdefault(client.record.app_name, {})[client.record.client_id] = client

    def discard(self, client: Client) -> None:
        """Count a client out."""
        clients = self.apps[client.record.app_name]
        del clients[client.record.client_id]
        if not clients:
            del self.apps[client.record.app_name]


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
        self.clients: dict[str, tuple[Client, OfferedList]] = {}
        self.users: dict[str, dict[str, None]] = {}  # the ids of each user's clients
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

    @property
    def is_contested(self) -> bool:
        """Whether there are tools whose ages should be asked for."""
        return bool(self._contested)

    def contested(self, most: int) -> list[str]:
        """Return up to `most` tools that have come to want a name which another one wants, too."""
        return list(islice(self._contested, most))

    def settled(self, digests: Iterable[str]) -> None:
        """Take it that these tools' ages were asked for."""
        self._contested.difference_update(digests)

    def learn(self, ages: Mapping[str, str]) -> Generator[None, None, None]:
        """Take it that tools are as old as this, if they seemed younger; in steps."""
        for digest, since in ages.items():
            group = self.groups.get(digest)
            if group is not None and since < group.since:
                self.revision += 1
                self._grow_older(group, since)
                yield

    def close(self) -> Generator[None, None, None]:
        """Give all room back, and let go of everything piece by piece, in steps; use it no more."""
        while self._ordered:
            group = self._ordered.pop()
            group.piece.release()
            group.lists.clear()  # which refer to their groups
            yield
        while self._lists:
            _, offered = self._lists.popitem()
            offered.groups.clear()
            yield
        tables: tuple[dict[Any, Any], ...] = (self.clients, self.users, self.groups, self._by_name, self._by_digits)
        for table in tables:
            while table:
                table.popitem()
                yield

    def put(self, client_id: str, client: Client | None) -> None:
        """Replace a client's record. None removes it."""
        at_once(self.change(client_id, client))

    def change(self, client_id: str, client: Client | None) -> Generator[None, None, None]:
        """Take a client's present record, as `put()` does, in steps."""
        self.revision += 1
        known = self._forget(client_id)
        offered = None if client is None else (yield from self._offered(client))
        if client is not None and offered is not None:
            self.clients[client_id] = client, offered
            self.users.setdefault(client.record.user, {})[client_id] = None
            offered.add(client)
            for group in offered.groups:
                if client.record.connected_at < group.since:
                    self._grow_older(group, client.record.connected_at)
                    yield
        if known is not None and known is not offered and not known.apps:
            yield from self._withdraw(known)

    def _forget(self, client_id: str) -> OfferedList | None:
        """Count a client out, and return the list that it had."""
        client, offered = self.clients.pop(client_id, (None, None))
        if client is None or offered is None:
            return None
        offered.discard(client)
        ids = self.users[client.record.user]
        del ids[client_id]
        if not ids:
            del self.users[client.record.user]
        return offered

    def _offered(self, client: Client) -> Generator[None, None, OfferedList]:
        key = client.capabilities.fingerprint
        offered = self._lists.get(key)
        if offered is None:
            offered = self._lists[key] = OfferedList(key)
            for raw in _split(client):
                item = yield from self._item(raw)
                offered.items.append(item)
                yield from self._offer(offered, item, client)
        return offered

    def _item(self, raw: msgspec.Raw) -> Generator[None, None, "_Item"]:
        key = hashlib.sha256(raw).digest()
        item = self._items.get(key)
        if item is None:
            definitions: list[ToolDefinition] = []
            for definition in definitions_of(raw):
                yield
                if definition is not None:
                    definitions.append(definition)
            item = self._items[key] = _Item(tuple(definitions))
        return item

    def _offer(self, offered: OfferedList, item: "_Item", client: Client) -> Generator[None, None, None]:
        for definition in item.definitions:
            yield
            offer = client.capabilities.find(definition.target)
            if offer is None or not offer.offers(definition.action):
                continue  # another capability of this name counts
            group = self._group(definition, client)
            if group is not None:
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

    def _withdraw(self, offered: OfferedList) -> Generator[None, None, None]:
        """Forget a list that nobody has any more, and the groups that nobody else has."""
        del self._lists[offered.key]
        for group in offered.groups:
            yield
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
