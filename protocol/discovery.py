"""Finding clients: which records an agent's query selects, filtered through `may()`, page by page.

The registry answers `list`, `get` and `find` from this, the agent API its routes; both therefore agree.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

from protocol.access import Principal, may, view_of
from protocol.records import CapabilityList, ClientRecord

MAX_PAGE = 1000


class Query(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """What to look for; every field narrows. `name` is a capability's, `after` the last client id already seen."""

    client_id: str | None = None
    name: str | None = None
    user: str | None = None
    app: str | None = None
    metadata: dict[str, str] = {}
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE)] | None = None
    after: str | None = None


class Client(msgspec.Struct, frozen=True):
    """A client as a mirror holds it: its record and its capabilities, read once."""

    record: ClientRecord
    capabilities: CapabilityList


class Page(msgspec.Struct, frozen=True):
    """The selected clients in the order of their ids; `after` is what asks for the next page, None at the end."""

    clients: list[Client]
    after: str | None


def select(clients: Mapping[str, Client], principal: Principal, query: Query) -> Page:
    """Return the page of `clients` (by client id, one tenant's) that the query selects and the principal may see."""
    found = sorted(_matching(_candidates(clients, query), principal, query), key=_client_id)
    if query.limit is None or len(found) <= query.limit:
        return Page(found, None)
    page = found[: query.limit]
    return Page(page, _client_id(page[-1]))


def offering(clients: Iterable[Client], principal: Principal, target: str, action: str | None) -> list[Client]:
    """Return the clients whose capability `target` (and action) the principal may use."""
    return [client for client in clients if usable(client, principal, target, action)]


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
    """Tell whether a query selects a client, whoever asks."""
    record = client.record
    return (
        (query.after is None or record.client_id > query.after)
        and query.user in (None, record.user)
        and query.app in (None, record.app_name)
        and (query.name is None or query.name in client.capabilities.offers)
        and all(text_of(record.metadata.get(key)) == value for key, value in query.metadata.items())
    )


def text_of(value: Any) -> str | None:
    """Return a metadata value as a query spells it: text as it is, other JSON as JSON."""
    return value if isinstance(value, str) or value is None else msgspec.json.encode(value).decode()


def _client_id(client: Client) -> str:
    return client.record.client_id
