"""A TCP relay in front of a server, which can be cut: those behind it are away, and all else goes on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

CHUNK_BYTES = 64 * 1024
_End = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Relay:
    """Passes bytes on to a port of loopback until it is cut, and again when it is mended."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._cut = False
        self._transports: set[asyncio.BaseTransport] = set()

    def cut(self) -> None:
        """Break all connections, and take no new ones."""
        self._cut = True
        for transport in self._transports:
            transport.close()

    def mend(self) -> None:
        """Take connections again."""
        self._cut = False

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        with contextlib.closing(writer):
            if self._cut:
                return
            onward, back = await asyncio.open_connection("127.0.0.1", self._port)
            with contextlib.closing(back):
                if not self._cut:  # as it may be by now
                    await self._join((reader, writer), (onward, back))

    async def _join(self, here: _End, there: _End) -> None:
        ends = {here[1].transport, there[1].transport}
        self._transports |= ends
        try:
            await asyncio.gather(_pass_on(here[0], there[1]), _pass_on(there[0], here[1]))
        finally:
            self._transports -= ends


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def relay_to(port: int) -> AsyncIterator[tuple[Relay, str]]:
    """Relay to a NATS server on this port, and give the URL of the relay."""
    relay = Relay(port)
    server = await asyncio.start_server(relay.take, "127.0.0.1", 0)
    try:
        yield relay, f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        relay.cut()
        server.close()
