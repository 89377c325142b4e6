"""Messages that a stranger writes by hand: the connection that gets them goes on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from nats.aio.msg import Msg
from support.nats.nats_server import NatsServer
from support.settings import settings_for
from support.wait import until

from protocol.runtime.nats.connection import connect
from protocol.runtime.settings import Settings

SIZE = 900_000  # which comes in several pieces


def with_headers(block: bytes) -> bytes:
    return b"HPUB a %d %d\r\n%b{}\r\n" % (len(block), len(block) + 2, block)


@contextlib.asynccontextmanager
async def stranger(server: NatsServer) -> AsyncIterator[asyncio.StreamWriter]:
    """A connection to NATS on which anything may be written."""
    host, _, port = server.url.rpartition("/")[2].partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
    yield writer
    writer.close()


@pytest.mark.parametrize(
    "odd",
    [
        b"PUB a _INBOX.\xff 2\r\n{}\r\n",
        b"PUB a _INBOX.\x0bx 2\r\n{}\r\n",
        b"PUB a _INBOX.\x0bx %d\r\n%b\r\n" % (SIZE, b"x" * SIZE),
        b"PUB a _INBOX.\xff %d\r\n%b\r\n" % (SIZE, b"x" * SIZE),
        with_headers(b"NATS/1.0"),
        with_headers(b"NATS/1.0\r\n\r\n"),
        with_headers(b"NATS/1.0\r\na:\xff\xfe\xfd\r\n\r\n"),
        with_headers(b"NATS/1.0\r\n\xff\r\n\r\n"),
        with_headers(b"NATS/1.0 \xff\r\n\r\n"),
        with_headers(b"\xff" * 20),
    ],
    ids=lambda odd: str(odd[:40]),
)
async def test_odd_message_ends_no_connection(private_nats: NatsServer, odd: bytes) -> None:
    heard: list[bytes] = []

    def hear(msg: Msg) -> None:
        heard.append(msg.data)

    async with connect(settings_for(Settings, private_nats.url), "test", "test") as connection:
        await connection.subscribe_confirmed("a", hear)
        async with stranger(private_nats) as writer:
            writer.write(odd)
            writer.write(b"PUB a 4\r\nnext\r\n")
            await writer.drain()
            await until(lambda: heard[-1:] == [b"next"], 10)
            assert await connection.answers(2)
        assert connection.breaks == 0
