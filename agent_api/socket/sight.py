"""What an agent has been told of a scene, and what is still to be told: a snapshot, then every change.

Sans-I/O. Nothing is queued, and nothing is kept of what was told but how it differs from the scene. So a burst of
changes costs one frame, an agent that reads slowly gets fewer frames, never a stale or an incomplete picture, and one
that has been told everything costs nothing.
"""

from collections.abc import Callable, Mapping
from itertools import islice

import msgspec

from agent_api.socket.frames import CapabilitiesFrame
from agent_api.socket.scene import MAX_LOOKS, Scene
from protocol.discovery import Client

MAX_FRAME_BYTES = 64 * 1024
_NOBODY = object()


class Sight:
    """One agent's picture of a scene. `encoded` gives the JSON of a client's record."""

    def __init__(self, ident: str, scene: Scene, encoded: Callable[[Client], msgspec.Raw]) -> None:
        self._ident = ident
        self._scene = scene
        self._encoded = encoded
        self._revision = 0
        self._complete = False
        # What the agent was told of another scene, each client as it was then or, where it had changed since, None.
        self._former: dict[str, Client | None] | None = {}
        self._snapshot: tuple[str, ...] = ()  # clients that were there, of which those from `_next` on are not told
        self._next = 0
        self._behind: dict[str, bool] = {}  # clients that have changed, and whether the agent was told of them before

    @property
    def complete(self) -> bool:
        """Whether the agent has been told everything."""
        return self._complete and self._former is None and self._all_told

    def note(self, client_id: str, *, there: bool) -> None:
        """Take the news that a client of the scene, which was or was not `there` before, has changed."""
        if self._former is None:
            self._behind.setdefault(client_id, there)

    def turn_to(self, scene: Scene) -> None:
        """Go on with another scene."""
        if self._former is None:
            self._former = self._told()
            self._snapshot, self._behind = (), {}
        self._scene = scene

    def step(self, clients: Mapping[str, Client]) -> CapabilitiesFrame | None:
        """Return the next frame; None where there is nothing to tell, or the scene, which this looks at, is not ready.

        `clients` are the tenant's as they are now.
        """
        if not self._scene.ready:
            self._scene.look(clients)
            return None
        if self._former is not None:
            self._compare(self._former)
        news = _News()
        self._introduce(news)
        self._catch_up(news)
        complete = self._all_told
        if not news.size and (self._complete or not complete):
            return None
        self._complete = complete
        self._revision += 1
        return CapabilitiesFrame(self._ident, self._revision, complete, news.added, news.updated, news.removed)

    @property
    def _all_told(self) -> bool:
        return self._next >= len(self._snapshot) and not self._behind

    def _introduce(self, news: "_News") -> None:
        """Tell of clients of the snapshot; one that has changed since is told of with the changes."""
        while self._next < len(self._snapshot) and news.size < MAX_FRAME_BYTES:
            client_id = self._snapshot[self._next]
            self._next += 1
            if client_id in self._behind:
                self._behind[client_id] = False
            else:
                news.add(self._encoded(self._scene.clients[client_id]), news.added)
        if self._next >= len(self._snapshot):
            self._snapshot, self._next = (), 0

    def _catch_up(self, news: "_News") -> None:
        """Tell of clients that have changed, the first first."""
        if self._snapshot:
            return
        for client_id in list(islice(self._behind, MAX_LOOKS)):
            if news.size >= MAX_FRAME_BYTES:
                return
            told, client = self._behind.pop(client_id), self._scene.clients.get(client_id)
            if client is not None:
                news.add(self._encoded(client), news.updated if told else news.added)
            elif told:
                news.remove(client_id)
        if not self._behind:
            self._behind = {}  # an emptied one keeps its size

    def _compare(self, former: Mapping[str, Client | None]) -> None:
        """Find out how the scene differs from what the agent was told of another."""
        there = self._scene.clients
        self._former, self._next = None, 0
        self._snapshot = tuple(each for each in there if each not in former) if former else self._scene.ids
        self._behind = {each: True for each, client in former.items() if there.get(each, _NOBODY) is not client}

    def _told(self) -> dict[str, Client | None]:
        """Return what the agent was told, each client as it was then or, where it has changed since, None."""
        untold = {*self._snapshot[self._next :], *(each for each, told in self._behind.items() if not told)}
        changed = self._behind.keys() - untold
        there = self._scene.clients.items()
        same = {each: client for each, client in there if each not in untold}
        return {**same, **dict.fromkeys(changed)}


class _News:
    """What a frame will tell, and about how many bytes that is."""

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
