"""The news for an agent about its visible clients: first a snapshot, then changes. Sans-I/O.

Nothing is queued. We only keep which clients differ from the agent's picture. So a burst of changes costs one frame. A
slow agent gets fewer frames, but never a stale or incomplete picture. An agent that is up to date costs nothing.
"""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import NamedTuple

import msgspec

from agent_api.clients.visible import MAX_LOOKS, VisibleClients
from protocol.discovery import Client

MAX_FRAME_BYTES = 64 * 1024
_NOBODY = object()


class ClientNews(NamedTuple):
    """The clients that have come, changed or gone since the last news. `added` and `updated` are records as JSON.

    With `complete` the agent's picture is up to date; otherwise more news follow at once. `revision` counts from 1.
    """

    revision: int
    complete: bool
    added: list[msgspec.Raw]
    updated: list[msgspec.Raw]
    removed: list[str]


class ClientChanges:
    """One agent's picture of its visible clients. `encoded` gives the JSON of a client's record."""

    def __init__(self, visible: VisibleClients, encoded: Callable[[Client], msgspec.Raw]) -> None:
        self._visible = visible
        self._encoded = encoded
        self._revision = 0
        self._complete = False
        # The agent's picture under its former scope: each client's record, or None if it has changed since.
        self._former: dict[str, Client | None] | None = {}
        self._snapshot: tuple[str, ...] = ()  # clients at the beginning; those from `_next` on are not sent yet
        self._next = 0
        self._behind: dict[str, bool] = {}  # changed clients, and whether the agent knows them already

    @property
    def complete(self) -> bool:
        """Whether the agent's picture is up to date."""
        return self._complete and self._former is None and self._all_told

    def note(self, client_id: str, *, there: bool) -> None:
        """Note that a visible client has changed. `there`: it was visible before."""
        if self._former is None:
            self._behind.setdefault(client_id, there)

    def turn_to(self, visible: VisibleClients) -> None:
        """Go on with another scope."""
        if self._former is None:
            self._former = self._told()
            self._snapshot, self._behind = (), {}
        self._visible = visible

    def step(self, clients: Mapping[str, Client]) -> ClientNews | None:
        """Return the next news, or None if there is none or the mirror is not filled yet.

        `clients` are the tenant's present clients.
        """
        if not self._visible.ready:
            self._visible.look(clients)
            return None
        if self._former is not None:
            self._compare(self._former)
        news = _Changes()
        self._introduce(news)
        self._catch_up(news)
        complete = self._all_told
        if not news.size and (self._complete or not complete):
            return None
        self._complete = complete
        self._revision += 1
        return ClientNews(self._revision, complete, news.added, news.updated, news.removed)

    @property
    def _all_told(self) -> bool:
        return self._next >= len(self._snapshot) and not self._behind

    def _introduce(self, news: "_Changes") -> None:
        """Add clients of the snapshot. One that has changed since is added with the changes."""
        while self._next < len(self._snapshot) and news.size < MAX_FRAME_BYTES:
            client_id = self._snapshot[self._next]
            self._next += 1
            if client_id in self._behind:
                self._behind[client_id] = False
            else:
                news.add(self._encoded(self._visible.clients[client_id]), news.added)
        if self._next >= len(self._snapshot):
            self._snapshot, self._next = (), 0

    def _catch_up(self, news: "_Changes") -> None:
        """Add changed clients, in the order of their changes."""
        if self._snapshot:
            return
        for client_id in list(islice(self._behind, MAX_LOOKS)):
            if news.size >= MAX_FRAME_BYTES:
                return
            told, client = self._behind.pop(client_id), self._visible.clients.get(client_id)
            if client is not None:
                news.add(self._encoded(client), news.updated if told else news.added)
            elif told:
                news.remove(client_id)
        if not self._behind:
            self._behind = {}  # a new dict, because an emptied one keeps its memory

    def _compare(self, former: Mapping[str, Client | None]) -> None:
        """Compare the visible clients with the agent's picture under its former scope."""
        there = self._visible.clients
        self._former, self._next = None, 0
        self._snapshot = tuple(each for each in there if each not in former) if former else self._visible.ids
        self._behind = {each: True for each, client in former.items() if there.get(each, _NOBODY) is not client}

    def _told(self) -> dict[str, Client | None]:
        """Return the agent's picture: each client's record as it was sent, or None if it has changed since."""
        untold = {*self._snapshot[self._next :], *(each for each, told in self._behind.items() if not told)}
        changed = self._behind.keys() - untold
        there = self._visible.clients.items()
        same = {each: client for each, client in there if each not in untold}
        return {**same, **dict.fromkeys(changed)}


class _Changes:
    """The content of the next frame and its approximate size in bytes."""

    def __init__(self) -> None:
        self.added: list[msgspec.Raw] = []
        self.updated: list[msgspec.Raw] = []
        self.removed: list[str] = []
        self.size = 0

    def add(self, record: msgspec.Raw, to: list[msgspec.Raw]) -> None:
        to.append(record)
        self.size += len(memoryview(record))

    def remove(self, client_id: str) -> None:
        self.removed.append(client_id)
        self.size += len(client_id)
