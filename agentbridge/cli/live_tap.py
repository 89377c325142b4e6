"""A live subscription to some subjects of NATS."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import click
from nats.aio.msg import Msg

from agentbridge.cli import output
from protocol import codec
from protocol.errors import ConfigurationError, InvalidRequest
from protocol.runtime.nats.connection import Connection

MAX_WAITING = 1000


class LiveTap:
    """Receives the messages of its subjects. If the terminal is slow, messages wait in NATS's own buffers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._queue: asyncio.Queue[Msg | None] = asyncio.Queue(MAX_WAITING)

    async def listen(self, subjects: list[str]) -> None:
        """Subscribe. Raises `ConfigurationError` if NATS does not permit it."""
        for subject in subjects:
            await self._connection.subscribe(subject, self._queue.put)
        await self._connection.verify_permissions()
        self._connection.failed.add_done_callback(lambda _: self._queue.put_nowait(None))
        self._connection.on_reconnect(_tell_of_gap)
        click.echo(f"listening on {' and '.join(subjects)}; Ctrl-C ends", err=True)

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the content of AgentBridge's messages, for ever; others are reported and skipped.

        Raises `ConfigurationError` if NATS closes the connection for good.
        """
        while True:
            message = await self._queue.get()
            if message is None:
                raise ConfigurationError("NATS closed the connection for good: see the log of nats-server")
            content = _content(message)
            if content is not None:
                yield content


def _tell_of_gap() -> None:
    """Say that messages may be missing. A tap reads no stream, so it cannot catch up."""
    click.echo("NATS is back; what was published since it was lost may be missing", err=True)


def _content(message: Msg) -> dict[str, Any] | None:
    """Return a message's content, or None if it is not AgentBridge's."""
    try:
        content = codec.decode_value(message.data)
    except InvalidRequest:
        content = None
    if isinstance(content, dict):
        return content
    click.echo(f"ignored a message on {output.printable(message.subject)} that is not ours", err=True)
    return None
