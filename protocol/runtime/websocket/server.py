"""The connections of one server: of one class, and closed together when the process ends."""

import asyncio

from websockets.asyncio.messages import Assembler
from websockets.asyncio.server import Server
from websockets.protocol import CONNECTING

from protocol.runtime.websocket.connection import BoundedSocket, SocketBounds

GOODBYE_SECONDS = 0.4  # for a peer to take its closing frame when the process ends
GOODBYE_POLL_SECONDS = 0.01


def bounded_socket(bounds: SocketBounds, connections: set[BoundedSocket]) -> type[BoundedSocket]:
    """Return the class of the connections of one server, which are in `connections` until they are lost.

    The library makes a queue of 760 bytes for the messages of each connection. Here all share one, which is closed.
    """
    no_messages = Assembler()
    no_messages.close()
    own = {
        "no_messages": no_messages,
        "send_buffer_bytes": bounds.send_buffer_bytes,
        "turns": bounds.turns,
        "bounds": bounds.shares,
        "connections": connections,
    }
    return type("BoundSocket", (BoundedSocket,), own)


def stop_accepting(server: Server, connections: set[BoundedSocket]) -> None:
    """Take no new connection, and cut those that are not open yet; open ones go on."""
    server.server.close()
    for connection in list(connections):
        if connection.protocol.state is CONNECTING:
            connection.transport.abort()


async def wait_closed(connections: set[BoundedSocket]) -> None:
    """Wait until all connections are closed; abort those whose peers do not take their closing frame soon."""
    give_up = asyncio.get_running_loop().time() + GOODBYE_SECONDS
    while connections and asyncio.get_running_loop().time() < give_up:
        await asyncio.sleep(GOODBYE_POLL_SECONDS)
    for connection in list(connections):
        connection.transport.abort()
