"""Tell the world that a client has connected, changed or gone: on `client.C.CHANGE`, stored in the events stream.

What has been written to the bucket is announced, for each client in that order, whatever happens to NATS meanwhile:
announcements wait in a bounded queue and are repeated until the stream has them. Their message id names the bucket's
revision that they are about and the change, so that a repeat, be it another registry's, is stored once; the session's
own revision would not do, for a client that was withdrawn and returns is announced with the same one.

An application that changes its name is announced under the former one besides, for readers who see only that: it goes
out of their sight, and no other message says so.
"""

import asyncio
import hashlib
import logging
import time
from collections import defaultdict, deque
from typing import Literal

import msgspec

from protocol import codec, subjects
from protocol.errors import BridgeError
from protocol.messages import MESSAGE_ID_HEADER, ClientChange, timestamp
from protocol.records import ClientRecord
from protocol.reports import Removal
from protocol.runtime import jetstream
from protocol.runtime.jetstream import JetStreamError
from protocol.runtime.nats import Connection
from registry.crowd import for_each

MAX_WAITING = 50_000
BATCH = 500
RETRY_SECONDS = 0.25
RENAMED = "renamed"  # why there is an announcement under a former name
Change = Literal["connected", "updated", "disconnected"]
Client = ClientRecord | Removal

log = logging.getLogger(__name__)


class _Announcement(msgspec.Struct, frozen=True):
    key: str
    subject: str
    body: bytes
    message_id: str


class Announcer:
    """Announces changes of clients. Start `run()` as a task."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: asyncio.Queue[_Announcement] = asyncio.Queue(MAX_WAITING)
        self._ids: set[str] = set()
        self._queued = 0
        self._stored = 0
        self._progress = asyncio.Condition()

    async def announce(self, change: Change, client: Client, revision: int, reason: str | None = None) -> None:
        """Queue an announcement of what the bucket's `revision` did; wait where too many are queued already."""
        await self._queue(change, client, client.app_name, revision, reason)

    async def announce_update(self, former: str, after: ClientRecord, revision: int) -> None:
        """Queue an announcement of a change, and where it is one of the application's name, first under the former."""
        if former not in ("", after.app_name):
            await self._queue("updated", after, former, revision, RENAMED)
        await self._queue("updated", after, after.app_name, revision, None)

    async def run(self) -> None:
        """Publish what is queued, for ever."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            await self._publish(batch)
            await self._note_stored(batch)

    async def drain(self) -> None:
        """Wait until everything that is queued by now is stored."""
        goal = self._queued
        async with self._progress:
            await self._progress.wait_for(lambda: self._stored >= goal)

    async def _queue(self, change: Change, client: Client, app: str, revision: int, reason: str | None) -> None:
        key = subjects.client_key(client.tenant, client.client_id)
        # No tenant begins with `_`, so no application can take this id with an event's.
        message_id = f"_client.{key}.{revision}.{change}" + (f".{_hash(app)}" if reason == RENAMED else "")
        if message_id not in self._ids:  # a repeated report's first one may still be waiting
            subject = subjects.client_change(client.tenant, client.client_id, change)
            body = codec.encode(_message(change, client, app, reason))
            await self._waiting.put(_Announcement(key, subject, body, message_id))
            self._ids.add(message_id)
            self._queued += 1

    async def _note_stored(self, batch: list[_Announcement]) -> None:
        self._ids.difference_update(announcement.message_id for announcement in batch)
        self._stored += len(batch)
        async with self._progress:
            self._progress.notify_all()

    async def _publish(self, batch: list[_Announcement]) -> None:
        """Store a batch, each client's announcements one after the other; repeat what failed, and what follows it."""
        chains: defaultdict[str, deque[_Announcement]] = defaultdict(deque)
        for announcement in batch:
            chains[announcement.key].append(announcement)
        while left := [chain for chain in chains.values() if chain]:
            await for_each(left, self._store_all)
            if any(left):
                await asyncio.sleep(RETRY_SECONDS)

    async def _store_all(self, chain: deque[_Announcement]) -> None:
        """Store the announcements of one client; those that remain could not be stored now."""
        while chain:
            try:
                await self._store(chain[0])
            except BridgeError:
                return
            chain.popleft()

    async def _store(self, announcement: _Announcement) -> None:
        headers = {MESSAGE_ID_HEADER: announcement.message_id}
        try:
            await jetstream.publish(self._connection, announcement.subject, announcement.body, headers)
        except JetStreamError as exc:
            log.error("the events stream refused %s: %s", announcement.subject, exc)


def _hash(app: str) -> str:
    """Return what a header takes for a name: one change may be announced under several former ones."""
    return hashlib.blake2b(app.encode(), digest_size=8).hexdigest()


def _message(change: Change, client: Client, app: str, reason: str | None) -> ClientChange:
    return ClientChange(
        change=change,
        client_id=client.client_id,
        user=client.user,
        app=app,
        at=timestamp(time.time()),
        revision=client.revision,
        reason=reason,
    )
