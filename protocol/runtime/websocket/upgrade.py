"""Turns HTTP connections of another server into WebSockets. For the library it takes the place of its own server."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, cast

from websockets.asyncio.server import Server, ServerConnection
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from protocol.runtime.websocket.connection import (
    CLOSE_TIMEOUT_SECONDS,
    OPEN_TIMEOUT_SECONDS,
    BoundedSocket,
    SocketBounds,
)
from protocol.runtime.websocket.handshake import select_subprotocol
from protocol.runtime.websocket.server import bounded_socket, wait_closed

log = logging.getLogger(__name__)


class Upgrades:
    """Makes a WebSocket of every upgraded HTTP connection.

    `screen` returns a response to refuse a handshake. `count` gets the path and the status of each answer. `serve` runs
    for as long as a connection is open.
    """

    def __init__(
        self,
        bounds: SocketBounds,
        screen: Callable[[ServerConnection, Request], Response | None],
        count: Callable[[str, int], None],
        serve: Callable[[BoundedSocket], Coroutine[Any, Any, None]],
    ) -> None:
        self.handler_tasks: set[asyncio.Task[None]] = set()
        self._connections: set[BoundedSocket] = set()
        self._kind = bounded_socket(bounds, self._connections)
        self._max_message_bytes = bounds.max_message_bytes
        self._screen = screen
        self._count = count
        self._serve = serve

    def __len__(self) -> int:
        return len(self.handler_tasks)

    def connection(self, **_: Any) -> BoundedSocket:
        """Return the protocol of one upgraded connection. The HTTP server's arguments are not needed."""
        protocol = ServerProtocol(
            select_subprotocol=lambda _, offered: select_subprotocol(connection, offered),
            max_size=self._max_message_bytes,
        )
        connection: BoundedSocket = self._kind(
            protocol, cast("Server", self), ping_interval=None, close_timeout=CLOSE_TIMEOUT_SECONDS
        )
        return connection

    async def wait_closed(self) -> None:
        """Wait until every connection has ended. Abort those that do not close within 0.4 s."""
        await wait_closed(self._connections)
        if self.handler_tasks:
            await asyncio.wait(self.handler_tasks, timeout=CLOSE_TIMEOUT_SECONDS)

    # --- the library's view of a server ---

    def is_serving(self) -> bool:
        """Return True. `screen` decides about handshakes."""
        return True

    async def handler(self, connection: ServerConnection) -> None:
        """Run a connection from its handshake to its end."""
        try:
            if await self._shakes_hands(connection):
                async with connection:
                    await self._serve(cast("BoundedSocket", connection))
        except Exception:
            log.exception("a socket failed")
        finally:
            # After a failed handshake the library leaves the socket open. After a close the abort does nothing.
            connection.transport.abort()
            self.handler_tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _shakes_hands(self, connection: ServerConnection) -> bool:
        """Tell whether the handshake succeeded. A stranger's failed handshake is not logged."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_SECONDS):
                await connection.handshake(self._screen, self._note_answer, server_header=None)
        except Exception:
            log.debug("a handshake failed", exc_info=True)
        return connection.protocol.state is OPEN

    def _note_answer(self, _: ServerConnection, request: Request, response: Response) -> None:
        self._count(request.path.partition("?")[0], response.status_code)
