"""The connections of one server: their common class, and their end when the process ends."""

import asyncio

from websockets.asyncio.messages import Assembler
from websockets.asyncio.server import Server
from websockets.protocol import CONNECTING

from protocol.runtime.websocket.connection import BoundedSocket, SocketBounds

GOODBYE_SECONDS = 0.4  # for a peer to take its closing frame when the process ends
GOODBYE_POLL_SECONDS = 0.01


def bounded_socket(bounds: SocketBounds, connections: set[BoundedSocket]) -> type[BoundedSocket]:
    """Return the class for a server's connections. They are in `connections` until they are lost.

    The library makes a message queue of 760 bytes for each connection. We do not use it, so all share a closed one.
    """
    no_messages = Assembler()
    no_messages.close()
    own = {
        "no_messages": no_messages,
        "send_buffer_bytes": bounds.send_buffer_bytes,
        "turns": bounds.turns,
        "bounds": bounds.shares,
        "connections": connections,
        "reads_fast": bounds.reads_fast,
        "writes_fast": bounds.writes_fast,
    }
    return type("BoundSocket", (BoundedSocket,), own)


def stop_accepting(server: Server, connections: set[BoundedSocket]) -> None:
    """Take no new connection, and abort those that are still in the handshake. Open ones go on."""
    server.server.close()
    for connection in list(connections):
        if connection.protocol.state is CONNECTING:
            connection.transport.abort()


async def wait_closed(connections: set[BoundedSocket]) -> None:
    """Wait until all connections are closed, and abort those that are still open after 0.4 s."""
    give_up = asyncio.get_running_loop().time() + GOODBYE_SECONDS
    while connections and asyncio.get_running_loop().time() < give_up:
        await asyncio.sleep(GOODBYE_POLL_SECONDS)
    for connection in list(connections):
        connection.transport.abort()
