"""The tools that one principal may use, their names, and the clients that each has for it.

Names depend only on the groups that the principal sees, oldest first: each group takes the first of its possible names
that no older group has. So no client can take another's name, and names reveal nothing about hidden clients.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from agent_api.tools.groups import OfferedList, TenantTools, ToolGroup
from agent_api.tools.texts import safe_line
from protocol.access import EVERY_PERMISSION, Principal, may, view_of
from protocol.discovery import Client

MAX_SHOWN = 128
MAX_LISTED_CLIENTS = 20
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
    """The tools of a tenant that a principal may use, at one moment. Do not await while you use it."""

    def __init__(self, tools: TenantTools, principal: Principal, narrowing: Narrowing = EVERYTHING) -> None:
        self._tools = tools
        self._principal = principal
        self._narrowing = narrowing
        self._sees_all = not principal.is_limited and narrowing.app is None
        self._visible: dict[OfferedList, list[Client]] = {}
        self._names: dict[str, str | None] = {}
        narrowed = narrowing.app is not None or narrowing.names is not None
        self._whole = ToolView(tools, principal) if narrowed else self  # narrowing does not change names

    def groups(self) -> Iterator[ToolGroup]:
        """Yield the groups that the principal may use, oldest first. Narrowing by name comes last."""
        wanted = self._narrowing.names
        for group in self._tools if wanted is None else self._named(wanted):
            if self.offers(group):
                yield group

    def offers(self, group: ToolGroup) -> bool:
        """Tell whether a client offers a tool to the principal."""
        return next(self.clients_of(group), None) is not None

    def clients_of(self, group: ToolGroup) -> Iterator[Client]:
        """Yield the clients that offer a tool to the principal."""
        for offered, permissions in group.lists.items():
            if self._grants(permissions):
                yield from self._visible_of(offered)

    def offering(self, group: ToolGroup, client_id: str) -> Client | None:
        """Return a client if it offers the tool to the principal, else None."""
        offered = self._tools.clients.get(client_id)
        permissions = None if offered is None else group.lists.get(offered)
        if offered is None or permissions is None or not self._grants(permissions):
            return None
        client = offered.clients[client_id]
        return client if self._sees(client) else None

    def name_of(self, group: ToolGroup) -> str | None:
        """Return the name of a tool, or None if older tools have all of its possible names."""
        if self._whole is not self:
            return self._whole.name_of(group)
        digest = group.definition.digest
        if digest not in self._names:
            self._names[digest] = next((name for name in group.definition.names if self._is_free(name, group)), None)
        return self._names[digest]

    def find(self, name: str) -> ToolGroup | None:
        """Return the tool with a name.

        A tool's longer names, which contain digits of its digest, find it even if it is listed under a shorter one.
        """
        if self._narrowing.names is not None and name not in self._narrowing.names:
            return None
        claimants = [group for group in self._tools.claimants(name) if self.offers(group)]
        for group in claimants:
            if self.name_of(group) == name:
                return group
        owner = next((group for group in claimants if name in group.definition.names[1:]), None)
        return owner or (claimants[0] if len(claimants) == 1 else None)

    def shown(self) -> tuple[list[ToolGroup], bool]:
        """Return the listed tools, and whether there are more."""
        named = (group for group in self.groups() if self.name_of(group) is not None)
        found = list(islice(named, MAX_SHOWN + 1))
        return found[:MAX_SHOWN], len(found) > MAX_SHOWN

    def tool(self, group: ToolGroup) -> Tool:
        """Return a tool for the list, with the argument that chooses among its clients if there are several."""
        definition = group.definition
        clients = list(islice(self.clients_of(group), MAX_LISTED_CLIENTS + 1))
        schema = definition.schema if len(clients) < 2 else _with_choice(definition.schema, clients)
        name = self.name_of(group)
        assert name is not None
        return Tool(name, definition.title, definition.description, schema, definition.annotations, len(clients))

    def _named(self, names: Iterable[str]) -> Iterable[ToolGroup]:
        return sorted({group for name in names if (group := self.find(name)) is not None}, key=lambda each: each.age)

    def _is_free(self, name: str, asker: ToolGroup) -> bool:
        """Tell whether no older tool that the principal sees has a name, or has it as one of its longer ones."""
        for group in self._tools.claimants(name):
            if group is asker:
                return True
            if self.offers(group) and (self.name_of(group) == name or name in group.definition.names[1:]):
                return False
        return True

    def _grants(self, permissions: frozenset[str]) -> bool:
        granted = self._principal.permissions
        return permissions <= granted or EVERY_PERMISSION in granted

    def _visible_of(self, offered: OfferedList) -> Iterable[Client]:
        if self._sees_all:
            return offered.clients.values()
        if offered not in self._visible:
            self._visible[offered] = [client for client in offered.clients.values() if self._sees(client)]
        return self._visible[offered]

    def _sees(self, client: Client) -> bool:
        if self._narrowing.app is not None and client.record.app_name != self._narrowing.app:
            return False
        return may(self._principal, view_of(client.record))


def choice_argument(schema: dict[str, Any]) -> str:
    """Return a name for the argument that chooses a client, other than the tool's own parameters."""
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


def _with_choice(schema: dict[str, Any], clients: list[Client]) -> dict[str, Any]:
    name = choice_argument(schema)
    choice: dict[str, Any] = {"type": "string"}
    if len(clients) > MAX_LISTED_CLIENTS:
        choice["description"] = "The id of the client that is to do it; the tool find_clients finds it."
    else:
        clients = sorted(clients, key=lambda client: client.record.client_id)
        choice["enum"] = [client.record.client_id for client in clients]
        choice["description"] = f"The client that is to do it: {'; '.join(map(_sentence, clients))}"
    changed = {**schema, "properties": {**schema.get("properties", {}), name: choice}}
    if not of_one_user(clients):
        changed["required"] = [*schema.get("required", []), name]
    return changed


def _sentence(client: Client) -> str:
    told = choice_of(client)
    rest = ", ".join(f"{name} {text}" for name, text in told.items() if name != "clientId")
    return f"{told['clientId']} ({rest})" if rest else told["clientId"]
