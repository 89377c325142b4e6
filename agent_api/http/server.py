"""uvicorn inside this process: our own socket, our own signals, our own order of ending."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol, cast

import uvicorn
from starlette.types import ASGIApp

from agent_api.http.connections import HttpConnection
from protocol.errors import ConfigurationError
from protocol.runtime.connections.bounds import ConnectionBounds
from protocol.runtime.connections.turns import Turns
from protocol.runtime.settings import variable

PEER_SECONDS = 30
KEEP_ALIVE_SECONDS = 75
SHUTDOWN_SECONDS = 1
ARRIVAL_SECONDS = 0.25  # for the rest of a request when the process ends
ARRIVAL_POLL_SECONDS = 0.01
BACKLOG = 2048
TICKS_A_SECOND = 10
HEADERS = [("x-content-type-options", "nosniff")]


class Upgrade(Protocol):
    """Makes the protocol of a connection that becomes a WebSocket."""

    def __call__(self, **server: Any) -> asyncio.Protocol:
        """Return the protocol of one connection; `server` is the HTTP server's state."""


class HttpServer(uvicorn.Server):
    """An HTTP server that leaves signals to the process and says when it serves."""

    def __init__(
        self,
        app: ASGIApp,
        upgrade: Upgrade,
        listener: socket.socket,
        turns: Turns,
        bounds: ConnectionBounds,
        *,
        writes_whole: bool,
    ) -> None:
        own = {"turns": turns, "bounds": bounds, "writes_whole": writes_whole}
        config = uvicorn.Config(
            app,
            interface="asgi3",
            loop="none",
            http=type("BoundConnection", (HttpConnection,), own),
            ws=cast("type[asyncio.Protocol]", upgrade),
            lifespan="off",
            log_config=None,
            log_level=logging.ERROR,  # strangers' broken requests are no news
            access_log=False,
            proxy_headers=False,
            server_header=False,
            headers=HEADERS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        super().__init__(config)
        self._listener = listener
        self._serving = asyncio.Event()
        self._ended = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none: the process owns signals."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and wake the tasks that wait for it."""
        await super().startup(sockets)
        self._serving.set()

    async def on_tick(self, counter: int) -> bool:
        """Check the time limits of all connections once a second, beside uvicorn's own upkeep."""
        if counter % TICKS_A_SECOND == 0:
            for connection in self._open_connections():
                connection.close_where_arriving(PEER_SECONDS)
                connection.abort_where_unread(PEER_SECONDS)
                connection.close_where_idle(KEEP_ALIVE_SECONDS)
        return await super().on_tick(counter)

    @contextlib.asynccontextmanager
    async def connections(self) -> AsyncIterator[None]:
        """At the orderly end let responses under way end, within bounds, and close every connection."""
        yield
        await self._close()

    @contextlib.asynccontextmanager
    async def accepting(self, tasks: asyncio.TaskGroup) -> AsyncIterator[str]:
        """Serve, and give the URL; at the orderly end take no new connection, while open ones go on."""
        tasks.create_task(self._run_until_closed(), name="HTTP server")
        await self._serving.wait()
        yield url_of(self._listener)
        for server in self.servers:
            server.close()
        await self._end_arrivals()

    async def _run_until_closed(self) -> None:
        try:
            await self.serve([self._listener])
        finally:
            self._ended.set()

    async def _end_arrivals(self) -> None:
        """Close, after a moment, the connections whose request is not complete."""
        give_up = asyncio.get_running_loop().time() + ARRIVAL_SECONDS
        while any(connection.arriving for connection in self._open_connections()):
            if asyncio.get_running_loop().time() >= give_up:
                break
            await asyncio.sleep(ARRIVAL_POLL_SECONDS)
        for connection in self._open_connections():
            connection.close_where_arriving(0)

    async def _close(self) -> None:
        """Let responses under way end, within bounds, and close every connection."""
        for connection in self._open_connections():
            connection.close_where_arriving(0)
        self.should_exit = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_SECONDS / 2):
                await self._ended.wait()
        for connection in self._open_connections():
            connection.abort_where_unread(0)
        await self._ended.wait()

    def _open_connections(self) -> list[HttpConnection]:
        return [each for each in self.server_state.connections if isinstance(each, HttpConnection)]


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raise `ConfigurationError` if the address is not available."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as exc:
        raise ConfigurationError(
            f"{variable('api_host')} and {variable('api_port')} are {host!r} and {port}, where this process cannot "
            f"listen: {exc.strerror or exc}"
        ) from exc
    # Accepted sockets inherit it. An event loop sets it too, but not every one on a socket that it did not make.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL at which a listening socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
