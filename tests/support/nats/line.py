"""NATS spoken by hand: what a server says to a login, without a client library that would have views of its own."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

LINE_BYTES = 1 << 20
PATIENCE_SECONDS = 15


class Line:
    """A connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def told(self, *commands: str) -> list[str]:
        """Send commands and return what the server says to them, without the last PONG."""
        self._writer.write("".join(f"{command}\r\n" for command in (*commands, "PING")).encode())
        said: list[str] = []
        while (line := await self.next()) not in ("", "PONG"):
            said.append(line)
        return said

    async def answers(self) -> bool:
        """Tell whether the server still has this connection."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(b"PING\r\n")
            while line := await self.next():
                if line == "PONG":
                    return True
        return False

    async def next(self) -> str:
        """Return the next line; nothing once the server has closed the connection."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return (await self._reader.readline()).decode().strip()


@contextlib.asynccontextmanager
async def line_to(port: int) -> AsyncIterator[Line]:
    """Connect to a server on loopback."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=LINE_BYTES)
    try:
        yield Line(reader, writer)
    finally:
        writer.close()


def connect_line(**options: Any) -> str:
    """Return the line that logs in."""
    return f"CONNECT {json.dumps({**options, 'verbose': False, 'headers': True, 'no_responders': True})}"


async def refusal(port: int, **options: Any) -> str:
    """Log in, and return what the server has against it; nothing if it lets us in."""
    async with line_to(port) as line:
        said = await line.told(connect_line(**options))
    return next((each for each in said if each.startswith("-ERR")), "")
