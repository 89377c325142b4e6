"""The overview of a scope: two lists, functions and components, each item with the id of its client.

Sans-I/O. An overview is made in steps, because a tenant may have many thousands of clients. Its bytes are bounded: the
next page begins after the client that it names. Detached clients are left out: an overview has no word for their state,
and a command to one of them is only told to be tried again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from protocol import codec, subjects
from protocol.discovery import Client, Query, fits
from protocol.records import Offer

MAX_OVERVIEW_BYTES = 256 * 1024  # plus the rest of the client that exceeds it
MAX_LOOKS = 500
MAX_WRITTEN_BYTES = 8 * 1024 * 1024

_NOTHING = msgspec.Raw(b"null")
_items_decoder = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_actions_decoder = msgspec.json.Decoder(list[Any])


class OverviewQuery(NamedTuple):
    """The wanted functions and components, of clients with ids that sort after `after`."""

    functions: Query = Query()
    components: Query = Query()
    after: str = ""

    def takes(self, offer: Offer) -> bool:
        """Tell whether the query selects a capability."""
        return fits(offer, self.functions if offer.kind == "function" else self.components)


class OverviewItem(NamedTuple):
    """A capability in an overview: with `clientId`, and a component's actions by name."""

    offer: Offer
    json: msgspec.Raw


Written = Callable[[Client], Sequence[OverviewItem]]


class Overview:
    """An overview that is made in steps. `after` is its last client if others are left out."""

    def __init__(self, clients: Mapping[str, Client], wanted: OverviewQuery, written: Written) -> None:
        self.functions: list[msgspec.Raw] = []
        self.components: list[msgspec.Raw] = []
        self.after: str | None = None
        self._clients = clients
        self._wanted = wanted
        self._written = written
        self._to_look_at = iter(sorted(each for each in clients if each > wanted.after))
        self._last = ""
        self._bytes = 0

    def look(self) -> bool:
        """Add some more clients. Return whether the overview is complete."""
        some = list(islice(self._to_look_at, MAX_LOOKS))
        for client_id in some:
            client = self._clients.get(client_id)
            if client is not None and not self._take(client):
                return True
        return len(some) < MAX_LOOKS

    def _take(self, client: Client) -> bool:
        """Add a client's wanted capabilities. Return whether there was room."""
        wanted = self._wanted.takes
        if client.record.is_detached or not any(map(wanted, client.capabilities.offers.values())):
            return True
        items = [item for item in self._written(client) if wanted(item.offer)]
        size = sum(len(memoryview(item.json)) for item in items)
        if self._bytes and self._bytes + size > MAX_OVERVIEW_BYTES:
            self.after = self._last
            return False
        for item in items:
            (self.functions if item.offer.kind == "function" else self.components).append(item.json)
        self._bytes += size
        self._last = client.record.client_id
        return True


class WrittenCapabilities:
    """A cache of clients' capabilities, encoded for overviews once for all agents while there is room."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Client, Sequence[OverviewItem]]] = {}
        self._bytes = 0

    def of(self, client: Client) -> Sequence[OverviewItem]:
        """Return a client's capabilities, without those that this version cannot read."""
        key = subjects.client_key(client.record.tenant, client.record.client_id)
        found = self._known.get(key)
        if found is not None and found[0] is client:
            return found[1]
        items = tuple(_items(client))
        size = sum(len(memoryview(item.json)) for item in items)
        self._bytes += size
        if self._bytes > MAX_WRITTEN_BYTES:
            self._known.clear()
            self._bytes = size
        self._known[key] = client, items
        return items

    def clear(self) -> None:
        """Forget everything, because no agent watches any more."""
        self._known.clear()
        self._bytes = 0


def _items(client: Client) -> Iterable[OverviewItem]:
    client_id = msgspec.Raw(codec.encode(client.record.client_id))
    for fields in codec.decode(_items_decoder, codec.raw_bytes(client.capabilities.raw)):
        kind = codec.decode_value(fields["type"])
        target = codec.decode_value(fields.get("name" if kind == "function" else "id", _NOTHING))
        offer = client.capabilities.find(target) if isinstance(target, str) else None
        if offer is not None:
            told = {**fields, "clientId": client_id}
            if "actions" in fields:
                told["actions"] = _actions_by_name(fields["actions"])
            yield OverviewItem(offer, msgspec.Raw(codec.encode(told)))


def _actions_by_name(actions: msgspec.Raw) -> msgspec.Raw:
    """Return the actions of a component by their names, which applications may also write as a list."""
    if codec.is_object(actions):
        return actions
    listed = codec.decode(_actions_decoder, codec.raw_bytes(actions))
    named = (({"name": each} if isinstance(each, str) else each) for each in listed)
    return msgspec.Raw(codec.encode({each["name"]: {k: v for k, v in each.items() if k != "name"} for each in named}))
