"""The tools that one principal may use, their names, and the clients that each has for it.

A name belongs to the oldest of the tools that may have it and that the principal sees. A tool is called by the best of
the names that belong to it. So no client can take another's name away, and what nobody here may see leaves no trace in
names.
"""

from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from agent_api.tools.groups import Age, OfferedList, TenantTools, ToolGroup
from agent_api.tools.slices import at_once
from agent_api.tools.texts import safe_line
from protocol.access import EVERY_PERMISSION, Principal, may, view_of
from protocol.discovery import Client

MAX_SHOWN = 128
MAX_LISTED_CLIENTS = 20
MAX_SORTED = 4096
CLIENTS_A_STEP = 64
CLIENT_ARGUMENT = "_client"
_TEXT_CHARS = 64


class Narrowing(NamedTuple):
    """Limits a caller's tools to those of one application, or to some names."""

    app: str | None = None
    names: frozenset[str] | None = None


EVERYTHING = Narrowing()


class Tool(msgspec.Struct, frozen=True):
    """A tool in a list. `clients` counts no further than one more than the number that is listed by id."""

    name: str
    title: str
    description: str
    schema: dict[str, Any]
    annotations: dict[str, Any]
    clients: int = 1


class ToolView:
    """A tenant's tools as one principal sees them at one moment: use it without waiting in between.

    A principal that is limited to users or clients sees few of them, so everything begins with these clients. For any
    other, clients are looked for as they are needed. `prepare()` does the slow part beforehand, in steps.
    """

    def __init__(self, tools: TenantTools, principal: Principal, narrowing: Narrowing = EVERYTHING) -> None:
        self._tools = tools
        self._principal = principal
        self._narrowing = narrowing
        self._named_clients = principal.users is not None or principal.clients is not None
        self._seen: dict[OfferedList, list[Client]] | None = None
        self._first: dict[str, ToolGroup | None] = {}
        narrowed = narrowing.app is not None or narrowing.names is not None
        self._whole = ToolView(tools, principal) if narrowed else self  # narrowing does not change names

    def prepare(self) -> Generator[None, None, None]:
        """Find the clients of a principal that is limited to users or clients, in steps."""
        if self._whole is not self:
            yield from self._whole.prepare()
        if self._named_clients and self._seen is None:
            seen: dict[OfferedList, list[Client]] = {}
            for place, (client, offered) in enumerate(self._possible_clients()):
                if self._sees(client):
                    seen.setdefault(offered, []).append(client)
                if not place % CLIENTS_A_STEP:
                    yield
            self._seen = seen

    def candidates(self) -> Iterator[ToolGroup]:
        """Go through groups, the oldest first, among which are all that the principal may use."""
        if self._narrowing.names is not None:
            return iter(self._named(self._narrowing.names))
        if self._named_clients:
            seen = self._seen_lists()
            if sum(len(offered.groups) for offered in seen) <= MAX_SORTED:
                return iter(sorted({group for offered in seen for group in offered.groups}, key=_age_of))
        return iter(self._tools)

    def groups(self) -> Iterator[ToolGroup]:
        """Go through the groups that the principal may use, the oldest first."""
        return (group for group in self.candidates() if self.offers(group))

    def offers(self, group: ToolGroup) -> bool:
        """Tell whether a client offers a tool to the principal."""
        return next(self.clients_of(group), None) is not None

    def clients_of(self, group: ToolGroup) -> Iterator[Client]:
        """Go through the clients that offer a tool to the principal."""
        if not self._named_clients:
            for offered, permissions in group.lists.items():
                if self._grants(permissions):
                    yield from self._visible_of(offered)
            return
        seen = self._seen_lists()
        fewer: Iterable[OfferedList] = seen if len(seen) < len(group.lists) else group.lists
        for offered in fewer:
            if offered in seen and offered in group.lists and self._grants(group.lists[offered]):
                yield from seen[offered]

    def offering(self, group: ToolGroup, client_id: str) -> Client | None:
        """Return a client if it offers a tool to the principal."""
        client, offered = self._tools.clients.get(client_id, (None, None))
        permissions = None if offered is None else group.lists.get(offered)
        if client is None or permissions is None or not self._grants(permissions):
            return None
        return client if self._sees(client) else None

    def name_of(self, group: ToolGroup) -> str | None:
        """Return the name of a tool that the principal may use; None if older ones have all of its names."""
        first = self._whole.first_of
        return next((name for name in group.definition.names if first(name) is group), None)

    def first_of(self, name: str) -> ToolGroup | None:
        """Return the oldest tool that the principal may use among those that may have a name, which is its."""
        if name not in self._first:
            self._first[name] = next((group for group in self._tools.claimants(name) if self.offers(group)), None)
        return self._first[name]

    def find(self, name: str) -> ToolGroup | None:
        """Return the tool with a name.

        A tool's longer names, which contain digits of its digest, find it even if it is listed under a shorter one.
        """
        if self._narrowing.names is not None and name not in self._narrowing.names:
            return None
        group = self._whole.first_of(name)
        if self._whole is self or (group is not None and self.offers(group)):
            return group
        # The tool of this name is out of sight. The only one within sight that may have it, if nothing were, is meant.
        within = list(islice((each for each in self._tools.claimants(name) if self.offers(each)), 2))
        return within[0] if len(within) == 1 else None

    def shown(self) -> Generator[None, None, tuple[list[ToolGroup], bool]]:
        """Return the tools that are listed, and whether there are more, in steps."""
        found: list[ToolGroup] = []
        for group in self.candidates():
            yield
            if self.offers(group) and self.name_of(group) is not None:
                if len(found) == MAX_SHOWN:
                    return found, True
                found.append(group)
        return found, False

    def tool(self, group: ToolGroup) -> Tool:
        """Return a tool for the list, with the argument that chooses among its clients if there are several."""
        definition = group.definition
        clients = list(islice(self.clients_of(group), MAX_LISTED_CLIENTS + 1))
        schema = definition.schema
        if len(clients) > 1:
            schema = _with_choice(schema, clients, is_free=of_one_user(self.clients_of(group)))
        name = self.name_of(group)
        assert name is not None
        return Tool(name, definition.title, definition.description, schema, definition.annotations, len(clients))

    def _named(self, names: Iterable[str]) -> Iterable[ToolGroup]:
        return sorted({group for name in names if (group := self.find(name)) is not None}, key=_age_of)

    def _grants(self, permissions: frozenset[str]) -> bool:
        granted = self._principal.permissions
        return permissions <= granted or EVERY_PERMISSION in granted

    # --- clients within sight ---

    def _seen_lists(self) -> dict[OfferedList, list[Client]]:
        if self._seen is None:
            at_once(self.prepare())
            assert self._seen is not None
        return self._seen

    def _possible_clients(self) -> Iterator[tuple[Client, OfferedList]]:
        """Go through the clients that the principal's token names, or whose users it names."""
        principal, known = self._principal, self._tools.clients
        if principal.clients is not None:
            ids: Iterable[str] = (each for each in sorted(principal.clients) if each in known)
        else:
            users = sorted(principal.users or ())
            ids = (client_id for user in users for client_id in self._tools.users.get(user, ()))
        return (known[client_id] for client_id in ids)

    def _visible_of(self, offered: OfferedList) -> Iterator[Client]:
        """Go through the clients of a list within sight: those of one application all are, or none."""
        for clients in offered.apps.values():
            if self._sees(next(iter(clients.values()))):
                yield from clients.values()

    def _sees(self, client: Client) -> bool:
        if self._narrowing.app is not None and client.record.app_name != self._narrowing.app:
            return False
        return may(self._principal, view_of(client.record))


def choice_argument(schema: dict[str, Any]) -> str:
    """Return a name for the argument that chooses a client. It differs from all parameters of the tool."""
    name = CLIENT_ARGUMENT
    while name in schema.get("properties", {}):
        name += "_"
    return name


def choice_of(client: Client) -> dict[str, str]:
    """Describe a client so that it can be chosen: its id, user, application and page title."""
    record = client.record
    texts = {"user": record.user, "app": record.app_name, "title": record.metadata.get("title")}
    told = {name: safe_line(text, _TEXT_CHARS) for name, text in texts.items()}
    return {"clientId": record.client_id, **{name: text for name, text in told.items() if text}}


def of_one_user(clients: Iterable[Client]) -> bool:
    """Tell whether all clients are one user's."""
    users = iter(clients)
    first = next(users, None)
    return first is None or all(client.record.user == first.record.user for client in users)


def _age_of(group: ToolGroup) -> Age:
    return group.age


def _with_choice(schema: dict[str, Any], clients: list[Client], *, is_free: bool) -> dict[str, Any]:
    name = choice_argument(schema)
    choice: dict[str, Any] = {"type": "string"}
    if len(clients) > MAX_LISTED_CLIENTS:
        choice["description"] = "The id of the client that is to do it; the tool find_clients finds it."
    else:
        clients = sorted(clients, key=lambda client: client.record.client_id)
        choice["enum"] = [client.record.client_id for client in clients]
        choice["description"] = f"The client that is to do it: {'; '.join(map(_sentence, clients))}"
    changed = {**schema, "properties": {**schema.get("properties", {}), name: choice}}
    if not is_free:
        changed["required"] = [*schema.get("required", []), name]
    return changed


def _sentence(client: Client) -> str:
    told = choice_of(client)
    rest = ", ".join(f"{name} {text}" for name, text in told.items() if name != "clientId")
    return f"{told['clientId']} ({rest})" if rest else told["clientId"]
