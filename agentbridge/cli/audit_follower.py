"""The audit stream followed from a place on, through reconnects: nothing is skipped in silence, nothing comes twice.

What comes on NATS carries no sequence, and what came while the connection was lost never comes. So it is taken as a
sign only that there is something to read, and records come from the stream alone, through a registry, each read
beginning after the last one.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

import click

from agentbridge.cli.audit_pages import AuditPages
from protocol.errors import ConfigurationError, Unavailable
from protocol.runtime.commands.audit_history import after_loss
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams.direct_get import StoredMessage
from protocol.runtime.streams.jetstream import StreamInfo

PAGE = 256
SHORTEST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 5.0
RETRY_SECONDS = 1.0  # while the stream cannot be read
FAILURES_TO_TELL = 5


class Stretch(NamedTuple):
    """What follows in the stream; `missed` where some that came before it may be gone, `more` where the next is due."""

    missed: bool
    found: list[StoredMessage]
    more: bool


class FollowerPlace:
    """Where in a stream, narrowed to some subjects, a follower is. It begins at the end."""

    def __init__(self, info: StreamInfo) -> None:
        self._begin(info, info.state.last_seq)

    def _begin(self, info: StreamInfo, sequence: int) -> None:
        self._created = info.created
        self.sequence = sequence
        self._read_to = sequence
        self._held_to = info.state.last_seq

    def take(self, found: list[StoredMessage], info: StreamInfo, *, more: bool) -> Stretch:
        """Move past what was read after this place; `info` is what the stream held since, `more` whether to read on.

        What others have stored since our last message was read through, too, so it may go without our missing any. A
        read begins after our last message all the same, for the replica that answered may have lagged behind.
        """
        known = max(self.sequence, self._read_to)
        if not self._created:  # there was no stream, so nothing is missed
            self._begin(info, 0)
            return Stretch(missed=False, found=[], more=bool(info.created))
        kept = after_loss(info, known, same=info.created == self._created)
        if kept is not None and (kept <= known or info.created != self._created):
            self._begin(info, kept)
            return Stretch(missed=True, found=[], more=True)  # what was read may be of either stream
        self.sequence = max(found[-1].sequence if found else self.sequence, kept or 0)
        if not more:
            self._read_to = self._held_to
        self._held_to = info.state.last_seq
        return Stretch(kept is not None, found, more)


class AuditFollower:
    """Follows what is stored on a subject of a tenant's audit stream. `start()` it, then read `stretches()`."""

    def __init__(self, connection: Connection, pages: AuditPages, subject: str) -> None:
        self._connection = connection
        self._pages = pages
        self._subject = subject
        self._news = asyncio.Event()
        self._failures = 0

    async def start(self) -> None:
        """Listen for signs. Raises `ConfigurationError` where NATS does not permit it."""
        await self._connection.subscribe_directly(self._subject, lambda _: self._news.set())
        await self._connection.verify_permissions()
        self._connection.on_reconnect(self._news.set)
        self._connection.failed.add_done_callback(lambda _: self._news.set())

    async def stretches(self, place: FollowerPlace) -> AsyncIterator[Stretch]:
        """Yield what follows a place, for ever.

        A sign may come before the stream, or the replica that answers, has what it is a sign of. So each is followed
        by reads in pauses that double, and a sign that got lost costs the longest of them.

        Raises `ConfigurationError` where NATS does not permit it, or lets us in no more.
        """
        pause = SHORTEST_PAUSE_SECONDS
        while True:
            stretch = await self._read(place)
            if stretch.missed or stretch.found:
                pause = SHORTEST_PAUSE_SECONDS
                yield stretch
            if not stretch.more:
                longest = RETRY_SECONDS if self._failures else LONGEST_PAUSE_SECONDS
                signed = await self._sign(min(pause, longest))
                pause = SHORTEST_PAUSE_SECONDS if signed else min(2 * pause, longest)

    async def _read(self, place: FollowerPlace) -> Stretch:
        """Read a page; none while the stream cannot be read, which is said where NATS itself is there."""
        try:
            found, info, more = await self._pages.forward(place.sequence + 1, PAGE)
        except Unavailable:
            self._count_failure()
            return Stretch(missed=False, found=[], more=False)
        self._failures = 0
        return place.take(found, info, more=more)

    def _count_failure(self) -> None:
        if self._connection.connected:
            self._failures += 1
            if self._failures == FAILURES_TO_TELL:
                click.echo("the audit stream cannot be read now; going on where it was left once it can", err=True)

    async def _sign(self, seconds: float) -> bool:
        """Wait for a sign, for so long; return whether there was one."""
        await asyncio.sleep(SHORTEST_PAUSE_SECONDS)  # where many come, one read is for all of them
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        if self._connection.failed.done():
            raise ConfigurationError("NATS closed the connection for good: see the log of nats-server")
        signed = self._news.is_set()
        self._news.clear()
        return signed
