"""The audit stream followed from a place on, through reconnects: nothing is skipped in silence, nothing comes twice.

The command line's NATS user may read the stream, and keep no consumer in it. What comes on NATS carries no sequence,
and what came while the connection was lost never comes. So it is taken as a sign only that there is something to read,
and records come from the stream alone, each read beginning after the last one.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

import click

from protocol.errors import ConfigurationError, Unavailable
from protocol.runtime.audit_history import AuditHistory, after_loss
from protocol.runtime.jetstream import StreamInfo
from protocol.runtime.nats import Connection
from protocol.runtime.stored import StoredMessage

PAGE = 256
SHORTEST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 5.0
FAILURES_TO_TELL = 5


class Stretch(NamedTuple):
    """What follows in the stream; `missed` where some that came before it may be gone, `more` where the next is due."""

    missed: bool
    found: list[StoredMessage]
    more: bool


class Place:
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
        kept = after_loss(info, known, same=info.created == self._created)
        if kept is not None and (kept <= known or info.created != self._created):
            self._begin(info, kept)
            return Stretch(missed=True, found=[], more=True)  # what was read may be of either stream
        self.sequence = max(found[-1].sequence if found else self.sequence, kept or 0)
        if not more:
            self._read_to = self._held_to
        self._held_to = info.state.last_seq
        return Stretch(kept is not None, found, more)


class Follower:
    """Follows what is stored on a subject of the audit stream. `start()` it, then read `stretches()`."""

    def __init__(self, connection: Connection, history: AuditHistory, subject: str) -> None:
        self._connection = connection
        self._history = history
        self._subject = subject
        self._news = asyncio.Event()
        self._failures = 0

    async def start(self) -> None:
        """Listen for signs. Raises `ConfigurationError` where NATS does not permit it."""
        await self._connection.subscribe_directly(self._subject, lambda _: self._news.set())
        await self._connection.verify_permissions()
        self._connection.on_reconnect(self._news.set)
        self._connection.failed.add_done_callback(lambda _: self._news.set())

    async def stretches(self, place: Place) -> AsyncIterator[Stretch]:
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
                pause = SHORTEST_PAUSE_SECONDS if await self._sign(pause) else min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _read(self, place: Place) -> Stretch:
        """Read a page; none while the stream cannot be read, which is said where NATS itself is there."""
        try:
            found = await self._history.forward(self._subject, place.sequence + 1, PAGE)
            info = await self._history.info()
        except Unavailable:
            await self._connection.verify_permissions()  # what is not permitted looks like silence
            self._count_failure()
            return Stretch(missed=False, found=[], more=False)
        self._failures = 0
        return place.take(found, info, more=len(found) == PAGE)

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
