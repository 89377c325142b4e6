"""What one agent is told unasked: messages of the hub and news of the outlook, each by a task of its own.

They take turns, and each writes only while little is unread: so a response always finds room, and an agent that reads
slowly is never cut off for what it is told. An agent that stays too slow for its events is told so, and the
subscription ended; one that is too slow for capabilities gets fewer frames.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from agent_api.events.cursor import Item
from agent_api.events.filters import Filters
from agent_api.events.gaps import Gap
from agent_api.events.messages import Message
from agent_api.events.positions import Position
from agent_api.events.reader import Reader
from agent_api.finding import clients_of
from agent_api.socket import frames
from agent_api.socket.effects import Effect, Stream
from agent_api.socket.frames import GapFrame, PositionFrame, SubscribedFrame
from agent_api.socket.outlook import Watch
from agent_api.socket.session import AgentSession
from agent_api.socket.surroundings import Surroundings
from protocol.access import Principal
from protocol.errors import BridgeError, Internal, Overloaded
from protocol.runtime.sockets import BoundedSocket

POSITION_SECONDS = 15.0
COALESCE_SECONDS = 0.05
HELD_SECONDS = 30.0  # for what was taken from the hub and cannot be written
MAX_AT_ONCE_BYTES = 64 * 1024  # between two looks whether there is room; one frame may be larger

log = logging.getLogger(__name__)


class Owner(Protocol):
    """Whose streams these are. It holds them, so they hold it only while one runs: no circle outlives a socket."""

    core: AgentSession

    def perform(self, effects: Iterable[Effect]) -> None:
        """Do what the core has decided."""


class Streams:
    """The streams of one socket."""

    def __init__(self, socket: BoundedSocket, around: Surroundings) -> None:
        self._socket = socket
        self._around = around
        self._running: dict[Stream, asyncio.Task[None]] = {}
        self._readers: dict[Stream, Reader] = {}
        self._watches: dict[Stream, Watch] = {}
        self._turn = asyncio.Lock()

    def open(self, stream: Stream, owner: Owner) -> None:
        """Begin to tell."""
        task = self._around.tasks.create_task(self._run(stream, owner), name=f"tell an agent under {stream.ident}")
        self._running[stream] = task
        task.add_done_callback(lambda _: self._running.pop(stream))

    def leave(self, stream: Stream) -> None:
        """Tell no more."""
        task = self._running.get(stream)
        if task is not None:
            task.cancel()

    def change_principal(self, principal: Principal) -> None:
        """Go on with the limits of the token that the socket has now."""
        for reader in self._readers.values():
            reader.change_principal(principal)
        for watch in self._watches.values():
            self._around.outlook.change_principal(watch, principal, clients_of(self._around.known, principal))

    async def _run(self, stream: Stream, owner: Owner) -> None:
        try:
            if stream.filters is None:
                await self._watch(stream, owner)
            else:
                await self._follow(stream, stream.filters, owner)
        except BridgeError as exc:
            owner.perform(owner.core.ended(stream, exc))
        except OSError:
            log.debug("a socket was lost while an agent was told something")
        except Exception:
            log.exception("telling an agent failed")
            owner.perform(owner.core.ended(stream, Internal("this ended by a fault; the log of the process says why")))

    # --- events ---

    async def _follow(self, stream: Stream, filters: Filters, owner: Owner) -> None:
        async with self._around.hub.open(owner.core.principal, filters, stream.since) as reader:
            reader.change_principal(owner.core.principal)  # it may have changed while that was opened
            self._readers[stream] = reader
            try:
                known = reader.position
                self._socket.send_text(frames.encode(SubscribedFrame(stream.ident, str(known))))
                while True:
                    known = await self._pass_on(stream.ident, reader, known)
                    await self._room()
            finally:
                del self._readers[stream]

    async def _pass_on(self, ident: str, reader: Reader, known: Position) -> Position:
        """Tell what comes next; where nothing comes, tell where the reader stands if the agent cannot know."""
        try:
            async with asyncio.timeout(POSITION_SECONDS):
                items = await reader.next()
        except TimeoutError:
            if reader.position != known:
                known = reader.position
                await self._write([frames.encode(PositionFrame(ident, str(known)))])
            return known
        try:
            async with asyncio.timeout(HELD_SECONDS), reader.while_held():
                await self._write(_frame(item, ident) for item in items)
        except TimeoutError as exc:
            raise Overloaded(
                "this agent reads too slowly for its subscriptions; resume from the last position"
            ) from exc
        reader.let_go()  # what is written counts against the bound of the socket
        return items[-1].position

    # --- capabilities ---

    async def _watch(self, stream: Stream, owner: Owner) -> None:
        principal = owner.core.principal
        watch = self._around.outlook.open(stream.ident, principal, clients_of(self._around.known, principal))
        self._watches[stream] = watch
        try:
            while True:
                await watch.news.wait()
                watch.news.clear()
                await self._show(watch)
                await asyncio.sleep(COALESCE_SECONDS)
        finally:
            del self._watches[stream]
            self._around.outlook.close(watch)

    async def _show(self, watch: Watch) -> None:
        """Tell until the agent's picture is complete."""
        while not watch.sight.complete:
            frame = watch.sight.step(self._around.known.clients(watch.tenant))
            if frame is not None:
                await self._write([frames.encode(frame)])
            await self._room()

    # --- writing ---

    async def _write(self, batch: Iterable[bytes]) -> None:
        """Write frames when it is this stream's turn and there is room; look again for each part of a large batch."""
        async with self._turn:
            await self._room()
            written = 0
            for data in batch:
                if written and written + len(data) > MAX_AT_ONCE_BYTES:
                    await self._room()
                    written = 0
                self._socket.send_text(data)
                written += len(data)

    async def _room(self) -> None:
        """Wait until little is unread; first for the end of the turn, when what was written is given to the system."""
        await asyncio.sleep(0)
        await self._socket.drain()


def _frame(item: Item, ident: str) -> bytes:
    match item:
        case Message():
            return frames.told(item, ident)
        case Gap():
            return frames.encode(GapFrame(ident, str(item.position), item.reason, item.message))
