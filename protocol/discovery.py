"""Finds the clients that a query selects and the agent may see (`may()`), page by page.

The registry uses it for `list`, `get` and `find`, and the agent API for its routes, so both give the same answers.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

from protocol import codec
from protocol.access import Principal, may, view_of
from protocol.records import CapabilityList, ClientRecord, Offer

MAX_PAGE = 1000
MAX_TAGS = 64


class Query(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """A search for clients. Every field narrows it. `name` is a capability's, `after` the last id of the last page.

    `tags`, `component_type`, `auth_level` and `path` must all fit one capability: it has at least one of the tags, and
    its path begins with `path`.
    """

    client_id: str | None = None
    name: str | None = None
    user: str | None = None
    app: str | None = None
    metadata: dict[str, str] = {}
    tags: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_TAGS)] = ()
    component_type: str | None = None
    auth_level: str | None = None
    path: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE)] | None = None
    after: str | None = None

    @property
    def selects_capabilities(self) -> bool:
        """Whether the query selects capabilities of a client by more than their names."""
        return bool(self.tags) or any(each is not None for each in (self.component_type, self.auth_level, self.path))


class Client(msgspec.Struct, frozen=True):
    """A client in a mirror: its record, and its capabilities, decoded once."""

    record: ClientRecord
    capabilities: CapabilityList


class Page(msgspec.Struct, frozen=True):
    """The selected clients, by id. `after` is the `Query.after` of the next page, None at the end."""

    clients: list[Client]
    after: str | None


class _Target(msgspec.Struct):
    """The target of a capability: a function's name or a component's id."""

    type: Any = None
    name: Any = None
    id: Any = None


_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_target_decoder = msgspec.json.Decoder(_Target)


def select(clients: Mapping[str, Client], principal: Principal, query: Query) -> Page:
    """Return a page of those `clients` (one tenant's, by id) that the query selects and the principal may see."""
    found = sorted(_matching(_candidates(clients, query), principal, query), key=_client_id)
    if query.limit is None or len(found) <= query.limit:
        return Page(found, None)
    page = found[: query.limit]
    return Page(page, _client_id(page[-1]))


def offering(clients: Iterable[Client], principal: Principal, target: str, action: str | None) -> list[Client]:
    """Return the clients of which the principal may use `target` (and the action).

    Disconnected clients are returned only if there are no others.
    """
    found = [client for client in clients if usable(client, principal, target, action)]
    return [client for client in found if not client.record.is_detached] or found


def usable(client: Client, principal: Principal, target: str, action: str | None) -> bool:
    """Tell whether a client offers the target and action, and the principal may use it."""
    offer = client.capabilities.find(target)
    return offer is not None and offer.offers(action) and may(principal, view_of(client.record), offer)


def _candidates(clients: Mapping[str, Client], query: Query) -> Iterable[Client]:
    if query.client_id is None:
        return clients.values()
    one = clients.get(query.client_id)
    return [one] if one else []


def _matching(clients: Iterable[Client], principal: Principal, query: Query) -> Iterable[Client]:
    return (client for client in clients if matches(client, query) and may(principal, view_of(client.record)))


def matches(client: Client, query: Query) -> bool:
    """Tell whether a query selects a client. This does not check access."""
    record = client.record
    return (
        (query.after is None or record.client_id > query.after)
        and query.user in (None, record.user)
        and query.app in (None, record.app_name)
        and (query.name is None or query.name in client.capabilities.offers)
        and (not query.selects_capabilities or any(fits(each, query) for each in client.capabilities.offers.values()))
        and all(text_of(record.metadata.get(key)) == value for key, value in query.metadata.items())
    )


def fits(offer: Offer, query: Query) -> bool:
    """Tell whether a query selects a capability, whatever its name."""
    labels = offer.labels
    return (
        (not query.tags or not labels.tags.isdisjoint(query.tags))
        and query.component_type in (None, labels.component_type)
        and query.auth_level in (None, labels.auth_level)
        and (query.path is None or (labels.path is not None and labels.path.startswith(query.path)))
    )


def narrowed(capabilities: CapabilityList, query: Query) -> msgspec.Raw:
    """Return the capabilities of a client that a query selects, as JSON."""
    if not query.selects_capabilities:
        return capabilities.raw
    items = codec.decode(_list_decoder, codec.raw_bytes(capabilities.raw))
    return msgspec.Raw(codec.encode([item for item in items if _is_selected(item, capabilities, query)]))


def _is_selected(item: msgspec.Raw, capabilities: CapabilityList, query: Query) -> bool:
    """Tell whether a query selects an item of a list. An item that this version cannot read counts as unlabelled."""
    found = codec.decode(_target_decoder, codec.raw_bytes(item))
    target = found.name if found.type == "function" else found.id
    offer = capabilities.find(target) if isinstance(target, str) else None
    return offer is not None and fits(offer, query)


def text_of(value: Any) -> str | None:
    """Return a metadata value as a query string has it: a string unchanged, any other value as JSON."""
    return value if isinstance(value, str) or value is None else msgspec.json.encode(value).decode()


def _client_id(client: Client) -> str:
    return client.record.client_id
