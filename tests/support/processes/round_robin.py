"""A proxy that sends each request to the next of several servers, as a balancer without stickiness does."""

import asyncio
import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlsplit

_CONNECTION = re.compile(rb"\r\nconnection: [^\r]*", re.IGNORECASE)


class RoundRobin:
    """Counts the requests that it sends to each server."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.url = ""
        self.requests = [0] * len(urls)
        self._addresses = [urlsplit(url) for url in urls]
        self._turns = itertools.cycle(range(len(urls)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one request on; a connection carries no second one."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            turn = next(self._turns)
            self.requests[turn] += 1
            address = self._addresses[turn]
            answers, requests = await asyncio.open_connection(address.hostname, address.port)
            with contextlib.closing(requests):
                requests.write(_CONNECTION.sub(b"", head)[:-2] + b"connection: close\r\n\r\n")
                await self._pipe(reader, requests, answers, writer)

    async def _pipe(
        self,
        reader: asyncio.StreamReader,
        requests: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Pass bytes on, until either side has closed."""
        both = [asyncio.ensure_future(_copy(reader, requests)), asyncio.ensure_future(_copy(answers, writer))]  # noqa: TID251  ended below
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def round_robin(urls: Sequence[str]) -> AsyncIterator[RoundRobin]:
    """Run a proxy in front of servers."""
    proxy = RoundRobin(urls)
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0) as server:
        proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield proxy
