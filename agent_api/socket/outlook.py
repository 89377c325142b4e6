"""The mirror's news for all sockets that watch what clients offer; what they can share is there once.

Agents with the same limits share a scene, and each record is encoded once for all of them.
"""

import asyncio
from collections.abc import Iterable

import msgspec

from agent_api.socket.scene import Scene, Scope, scope_of
from agent_api.socket.sight import Sight
from protocol import codec, subjects
from protocol.access import Principal
from protocol.discovery import Client
from protocol.runtime.replica import Entry

MAX_ENCODED_BYTES = 8 * 1024 * 1024


class Watch:
    """One agent's picture, and the news that there is something to tell of it."""

    def __init__(self, sight: Sight, scope: Scope) -> None:
        self.sight = sight
        self.scope = scope
        self.news = asyncio.Event()
        self.news.set()

    @property
    def tenant(self) -> str:
        """Whose clients are watched."""
        return self.scope.tenant

    def note(self, client_id: str, *, there: bool) -> None:
        """Take the news that a client, which was or was not `there` before, has changed."""
        self.sight.note(client_id, there=there)
        self.news.set()

    def turn_to(self, scene: Scene, scope: Scope) -> None:
        """Go on with what another scope shows."""
        self.scope = scope
        self.sight.turn_to(scene)
        self.news.set()


class Outlook:
    """All watches of a process. `observe` must hear all of the mirror's news."""

    def __init__(self) -> None:
        self._scenes: dict[str, dict[Scope, Scene]] = {}
        self._encoded: dict[str, tuple[Client, msgspec.Raw]] = {}
        self._encoded_bytes = 0

    def observe(self, key: str, before: Entry | None, after: Entry | None) -> None:
        """Take a piece of the mirror's news."""
        address = subjects.parse_key(key) if self._scenes else None
        if address is not None:
            for scene in self._scenes.get(address.tenant, {}).values():
                scene.change(address.client_id, after.client if after else None)

    def open(self, ident: str, principal: Principal, client_ids: Iterable[str]) -> Watch:
        """Begin a watch with a picture of nothing; `client_ids` are all that the principal's tenant has now."""
        scope = scope_of(principal)
        scene = self._scene(scope, principal, client_ids)
        watch = Watch(Sight(ident, scene, self._encode), scope)
        scene.onlookers.add(watch)
        return watch

    def change_principal(self, watch: Watch, principal: Principal, client_ids: Iterable[str]) -> None:
        """Go on with a renewed token's limits; `client_ids` are all that the principal's tenant has now."""
        scope = scope_of(principal)
        if scope == watch.scope:
            return
        scene = self._scene(scope, principal, client_ids)
        scene.onlookers.add(watch)
        self.close(watch)
        watch.turn_to(scene, scope)

    def close(self, watch: Watch) -> None:
        """End a watch; what nobody watches any more is forgotten."""
        scenes = self._scenes[watch.tenant]
        scenes[watch.scope].onlookers.remove(watch)
        if not scenes[watch.scope].onlookers:
            del scenes[watch.scope]
        if not scenes:
            del self._scenes[watch.tenant]
        if not self._scenes:
            self._encoded.clear()
            self._encoded_bytes = 0

    def _scene(self, scope: Scope, principal: Principal, client_ids: Iterable[str]) -> Scene:
        scenes = self._scenes.setdefault(scope.tenant, {})
        if scope not in scenes:
            scenes[scope] = Scene(principal, client_ids)
        return scenes[scope]

    def _encode(self, client: Client) -> msgspec.Raw:
        key = subjects.client_key(client.record.tenant, client.record.client_id)
        found = self._encoded.get(key)
        if found is not None and found[0] is client:
            return found[1]
        record = msgspec.Raw(codec.encode(client.record))
        self._encoded_bytes += len(memoryview(record))
        if self._encoded_bytes > MAX_ENCODED_BYTES:
            self._encoded.clear()
            self._encoded_bytes = len(memoryview(record))
        self._encoded[key] = client, record
        return record
