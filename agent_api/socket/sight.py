"""What an agent has been told of its tenant's clients, and what is still to be told: a snapshot, then every change.

Sans-I/O. Nothing is queued: there is a set of clients to look at again, and what was told of each. So a burst of
changes costs one frame, and an agent that reads slowly gets fewer frames, never a stale or an incomplete picture.
"""

from collections.abc import Callable, Iterable, Mapping

import msgspec

from agent_api.socket.frames import CapabilitiesFrame
from protocol.access import Principal, may, view_of
from protocol.discovery import Client

MAX_FRAME_BYTES = 64 * 1024
MAX_LOOKS = 1000


class Sight:
    """One agent's picture. `encoded` gives the JSON of a client's record."""

    def __init__(self, ident: str, principal: Principal, encoded: Callable[[Client], msgspec.Raw]) -> None:
        self._ident = ident
        self._principal = principal
        self._encoded = encoded
        self._to_look_at: set[str] = set()
        self._told: dict[str, Client] = {}
        self._complete = False

    @property
    def complete(self) -> bool:
        """Whether there is nothing to look at, and the agent knows."""
        return self._complete and not self._to_look_at

    def look_at(self, client_ids: Iterable[str]) -> None:
        """Note that these clients are, or may be, not what the agent was told."""
        self._to_look_at.update(client_ids)

    def change_principal(self, principal: Principal, client_ids: Iterable[str]) -> None:
        """Go on with a renewed token's limits, looking again at all clients that there are."""
        self._principal = principal
        self.look_at(client_ids)
        self.look_at(self._told)

    def step(self, clients: Mapping[str, Client], revision: int) -> CapabilitiesFrame | None:
        """Look at some clients, and return what there is to tell of them; None where that is nothing.

        `clients` are the tenant's as they are now, which is what they are at `revision`.
        """
        news = _News()
        for _ in range(MAX_LOOKS):
            if not self._to_look_at or news.size >= MAX_FRAME_BYTES:
                break
            client_id = self._to_look_at.pop()
            self._look(client_id, clients.get(client_id), news)
        complete = not self._to_look_at
        if not news.size and complete == self._complete:
            return None
        self._complete = complete
        return CapabilitiesFrame(self._ident, revision, complete, news.added, news.updated, news.removed)

    def _look(self, client_id: str, client: Client | None, news: "_News") -> None:
        """Compare a client with what was told of it; the mirror makes a new object for each change."""
        known = self._told.get(client_id)
        if client is not None and may(self._principal, view_of(client.record)):
            if client is not known:
                self._told[client_id] = client
                news.add(self._encoded(client), news.added if known is None else news.updated)
        elif known is not None:
            del self._told[client_id]
            news.remove(client_id)


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
