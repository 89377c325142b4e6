"""The subscriptions of one agent's socket: events from the hub and changes of capabilities, each in a task of its own.

The tasks take turns, and write only while little of the socket's output is unread. So a response always finds room, and
no subscription can get a slow agent cut off. If an agent stays too slow for its events, that subscription ends with an
error. If it is too slow for capabilities, it gets fewer frames.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Protocol

from agent_api.clients.find import clients_of
from agent_api.clients.overview import Overview, OverviewQuery
from agent_api.clients.visible import VisibleClients
from agent_api.clients.watch import ClientWatch
from agent_api.context import SocketContext
from agent_api.events.cursor import Item
from agent_api.events.filters import Filters
from agent_api.events.gaps import Gap
from agent_api.events.messages import Message
from agent_api.events.reader import Reader
from agent_api.http.connections import REQUEST_SECONDS
from agent_api.socket import frames
from agent_api.socket.dialect import AgentDialect
from agent_api.socket.effects import AgentEffect, Stream
from agent_api.socket.frames import (
    AskOverviewFrame,
    CapabilitiesFrame,
    GapFrame,
    OverviewFrame,
    PositionFrame,
    StreamFrame,
    SubscribedFrame,
)
from agent_api.socket.session import AgentSession
from protocol.access import Principal
from protocol.errors import BridgeError, Internal, Overloaded
from protocol.runtime.streams.positions import Position
from protocol.runtime.websocket.connection import BoundedSocket

POSITION_SECONDS = 15.0
COALESCE_SECONDS = 0.05
OVERVIEW_SECONDS = 0.5  # between two overviews, because each one is complete
HELD_SECONDS = 30.0  # how long messages from the hub may wait to be written
MAX_AT_ONCE_BYTES = 64 * 1024  # written between two checks for room; a single frame may be larger

log = logging.getLogger(__name__)


class Owner(Protocol):
    """The socket that owns the streams. They refer to it only while they run, so that no reference cycle remains."""

    core: AgentSession

    def perform(self, effects: Iterable[AgentEffect]) -> None:
        """Perform the core's effects."""


class AgentStreams:
    """The streams of one socket."""

    def __init__(self, socket: BoundedSocket, dialect: AgentDialect, context: SocketContext) -> None:
        self._socket = socket
        self._dialect = dialect
        self._context = context
        self._running: dict[Stream, asyncio.Task[None]] = {}
        self._readers: dict[Stream, Reader] = {}
        self._watches: dict[Stream, ClientWatch] = {}
        self._turn = asyncio.Lock()

    def open(self, stream: Stream, owner: Owner) -> None:
        """Start a stream in a task of its own."""
        # Opening costs more than a frame, so it counts against the agent's turn.
        self._context.turns.charge(REQUEST_SECONDS)
        task = self._context.tasks.create_task(self._run(stream, owner), name=f"tell an agent under {stream.ident}")
        self._running[stream] = task
        task.add_done_callback(lambda _: self._running.pop(stream))

    def leave(self, stream: Stream) -> None:
        """Stop a stream, if it still runs."""
        task = self._running.get(stream)
        if task is not None:
            task.cancel()

    def change_principal(self, principal: Principal) -> None:
        """Apply the limits of a fresh token to all streams."""
        for reader in self._readers.values():
            reader.change_principal(principal)
        for watch in self._watches.values():
            self._context.client_watches.change_principal(watch, principal, clients_of(self._context.known, principal))

    async def _run(self, stream: Stream, owner: Owner) -> None:
        try:
            if stream.filters is not None:
                await self._follow(stream, stream.filters, owner)
            elif stream.overview is not None:
                await self._look(stream, stream.overview, owner)
            else:
                await self._watch(stream, owner)
        except BridgeError as exc:
            owner.perform(owner.core.ended(stream, exc))
        except OSError:
            # The socket's own end cancels its streams. Here the write was faster.
            log.debug("a socket was lost during a subscription")
        except Exception:
            log.exception("a subscription of an agent failed")
            owner.perform(owner.core.ended(stream, Internal("this failed; the log of the process says why")))

    # --- events ---

    async def _follow(self, stream: Stream, filters: Filters, owner: Owner) -> None:
        async with self._context.hub.open(owner.core.principal, filters, stream.since) as reader:
            # The token may have changed while the reader was opened.
            reader.change_principal(owner.core.principal)
            self._readers[stream] = reader
            try:
                known = reader.position
                begun = self._dialect.encode(SubscribedFrame(stream.ident, str(known)))
                if begun is not None:
                    self._socket.send_text(begun)
                while True:
                    known = await self._pass_on(stream.ident, reader, known)
                    await self._room()
            finally:
                del self._readers[stream]

    async def _pass_on(self, ident: str, reader: Reader, known: Position) -> Position:
        """Send the next messages and return the position behind them.

        If none comes for 15 s, send a `position` frame, unless the agent knows the position.
        """
        try:
            async with asyncio.timeout(POSITION_SECONDS):
                items = await reader.next()
        except TimeoutError:
            if reader.position != known:
                known = reader.position
                await self._tell(PositionFrame(ident, str(known)))
            return known
        try:
            async with asyncio.timeout(HELD_SECONDS), reader.while_held():
                await self._write(_frame(item, ident) for item in items)
        except TimeoutError as exc:
            raise Overloaded(
                "this agent reads too slowly for its subscriptions; resume from the last position"
            ) from exc
        # From now on the messages count as the socket's output.
        reader.let_go()
        return items[-1].position

    # --- capabilities ---

    async def _watch(self, stream: Stream, owner: Owner) -> None:
        with self._watching(stream, owner) as watch:
            while True:
                await watch.news.wait()
                watch.news.clear()
                await self._show(stream, watch)
                await asyncio.sleep(COALESCE_SECONDS)

    @contextlib.contextmanager
    def _watching(self, stream: Stream, owner: Owner) -> Iterator[ClientWatch]:
        principal = owner.core.principal
        watch = self._context.client_watches.open(principal, clients_of(self._context.known, principal))
        self._watches[stream] = watch
        try:
            yield watch
        finally:
            del self._watches[stream]
            self._context.client_watches.close(watch)

    async def _show(self, stream: Stream, watch: ClientWatch) -> None:
        """Send changes until the agent has the present capabilities of all its clients."""
        while not watch.changes.complete:
            news = watch.changes.step(self._context.known.clients(watch.tenant))
            if news is not None:
                await self._tell(CapabilitiesFrame(stream.ident, *news))
            await self._room()

    async def _look(self, stream: Stream, asked: AskOverviewFrame, owner: Owner) -> None:
        """Send an overview of capabilities; if the agent follows, another one after each change."""
        await self._context.known.filled.wait()
        with self._watching(stream, owner) as watch:
            while True:
                await watch.news.wait()
                watch.news.clear()
                principal, visible = owner.core.principal, watch.visible
                async with self._context.client_watches.overview_turns.of((principal.tenant, principal.sub)) as step:
                    made = await self._overview(asked.wanted, visible, step)
                if watch.visible is not visible:
                    # A fresh token has changed the limits: make the overview again.
                    continue
                await self._tell(OverviewFrame(stream.ident, made.functions, made.components, made.after))
                if not asked.follow:
                    break
                await asyncio.sleep(OVERVIEW_SECONDS)
        owner.core.told(stream)

    async def _overview(self, wanted: OverviewQuery, visible: VisibleClients, step: asyncio.Lock) -> Overview:
        """Make an overview of the visible clients, in steps, so that other tasks can run between them."""
        while not visible.ready:
            async with step:
                visible.look(self._context.known.clients(visible.tenant))
                await asyncio.sleep(0)
        made = Overview(visible.clients, wanted, self._context.client_watches.written.of)
        while True:
            async with step:
                is_made = made.look()
                await asyncio.sleep(0)
            if is_made:
                return made

    # --- writing ---

    async def _tell(self, frame: StreamFrame | OverviewFrame) -> None:
        data = self._dialect.encode(frame)
        if data is not None:
            await self._write([data])

    async def _write(self, batch: Iterable[bytes]) -> None:
        """Write frames when it is this stream's turn and there is room. Check for room again every 64 KiB."""
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
        """Wait until little of the socket's output is unread."""
        # Uvloop passes small writes to the system at the end of the loop's turn.
        await asyncio.sleep(0)
        await self._socket.drain()


def _frame(item: Item, ident: str) -> bytes:
    match item:
        case Message():
            return frames.told(item, ident)
        case Gap():
            return frames.encode(GapFrame(ident, str(item.position), item.reason, item.message))
