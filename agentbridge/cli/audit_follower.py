"""Follows the audit stream through reconnects: no record comes twice, and every gap is reported.

A record published on NATS carries no sequence, and one published while the connection is lost never arrives. So a
message on NATS only wakes the follower. It then reads the stream itself, through a registry, from the last record on.
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
    """The next records of the stream. `missed`: records before them may be gone; `more`: read on at once."""

    missed: bool
    found: list[StoredMessage]
    more: bool


class FollowerPlace:
    """A follower's position in a stream, of which it reads some subjects. It starts at the end of the stream."""

    def __init__(self, info: StreamInfo) -> None:
        self._begin(info, info.state.last_seq)

    def _begin(self, info: StreamInfo, sequence: int) -> None:
        self._created = info.created
        self.sequence = sequence
        self._read_to = sequence
        self._held_to = info.state.last_seq

    def take(self, found: list[StoredMessage], info: StreamInfo, *, more: bool) -> Stretch:
        """Move past the records `found`. `info` is the stream's state afterwards, `more` whether to read on.

        Returns what to show: the records, and whether the stream has lost some that we have not read.
        """
        # Records on other subjects are read, too, so losing them is no gap. But the next read begins after our own last
        # record, because the replica that answered may lack the newest ones.
        known = max(self.sequence, self._read_to)
        if not self._created:
            # There was no stream before, so nothing is missed.
            self._begin(info, 0)
            return Stretch(missed=False, found=[], more=bool(info.created))
        kept = after_loss(info, known, same=info.created == self._created)
        if kept is not None and (kept <= known or info.created != self._created):
            self._begin(info, kept)
            # Drop `found`: it may come from the old or the new stream.
            return Stretch(missed=True, found=[], more=True)
        self.sequence = max(found[-1].sequence if found else self.sequence, kept or 0)
        if not more:
            self._read_to = self._held_to
        self._held_to = info.state.last_seq
        return Stretch(kept is not None, found, more)


class AuditFollower:
    """Follows one subject of a tenant's audit stream. `start()` it, then read `stretches()`."""

    def __init__(self, connection: Connection, pages: AuditPages, subject: str) -> None:
        self._connection = connection
        self._pages = pages
        self._subject = subject
        self._news = asyncio.Event()
        self._failures = 0

    async def start(self) -> None:
        """Subscribe for records as they are published. Raises `ConfigurationError` if NATS does not permit it."""
        await self._connection.subscribe_directly(self._subject, lambda _: self._news.set())
        await self._connection.verify_permissions()
        self._connection.on_reconnect(self._news.set)
        self._connection.failed.add_done_callback(lambda _: self._news.set())

    async def stretches(self, place: FollowerPlace) -> AsyncIterator[Stretch]:
        """Yield the records after `place`, for ever.

        Raises `ConfigurationError` if NATS closes the connection for good.
        """
        # A wake-up may come before the stream, or the replica that answers, has its record. So we read again after
        # pauses that double from 50 ms to 5 s. A lost wake-up delays a record by 5 s at most.
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
        """Read a page, empty if the stream cannot be read. Report that to the user if NATS is there."""
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
        """Wait for a wake-up, `seconds` at most. Return whether one came."""
        # Pause, so that one read serves many wake-ups.
        await asyncio.sleep(SHORTEST_PAUSE_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        if self._connection.failed.done():
            raise ConfigurationError("NATS closed the connection for good: see the log of nats-server")
        signed = self._news.is_set()
        self._news.clear()
        return signed
