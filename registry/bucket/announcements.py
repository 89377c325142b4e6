"""Announces on `client.C.CHANGE` that a client has connected, changed or gone; stored with the tenant's events.

Every write to the bucket is announced, for each client in the order of its writes. Announcements wait in a bounded
queue, and are repeated until the stream has them. Their message id contains the bucket's revision and the change, so
that a repeat is stored once, even from another registry. The session's own revision would not be unique, because a
client that was withdrawn and returns has the same one.

An application that changes its name is also announced under its former name. Otherwise a reader that may see only the
former name would never learn that the client is gone.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from typing import Literal

import msgspec

from protocol import codec, subjects
from protocol.errors import BridgeError, PayloadTooLarge
from protocol.messages import MESSAGE_ID_HEADER, ClientChange, timestamp
from protocol.records import ClientRecord
from protocol.reports import Removal
from protocol.runtime.nats.connection import LAST_ANSWER_SECONDS, Connection
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.jetstream import JetStreamError, NoStream, StoreRefused
from protocol.runtime.streams.stores import TenantStore, events_of
from registry.bucket.concurrency import for_each
from registry.bucket.parked_announcements import Parked, StuckStores
from registry.stores.tenants import TenantStreams

MAX_WAITING = 50_000
BATCH = 500
RETRY_SECONDS = 0.25
RENAMED = "renamed"  # the reason in an announcement under a former name
Change = Literal["connected", "updated", "detached", "resumed", "disconnected"]
Client = ClientRecord | Removal

log = logging.getLogger(__name__)


class _ClientAnnouncement(msgspec.Struct, frozen=True):
    key: str
    store: TenantStore
    subject: str
    body: bytes
    message_id: str


class Announcer:
    """Announces changes of clients. Start `run()` as a task."""

    def __init__(self, connection: Connection, streams: TenantStreams) -> None:
        self._connection = connection
        self._streams = streams
        self._waiting: asyncio.Queue[_ClientAnnouncement] = asyncio.Queue(MAX_WAITING)
        self._ids: set[str] = set()
        self._queued = 0
        self._stored = 0
        self._progress = asyncio.Condition()
        self._loop = asyncio.get_running_loop()
        self._stuck = StuckStores()
        self._parked: Parked[_ClientAnnouncement] = Parked(self._store)

    async def announce(self, change: Change, client: Client, revision: int, reason: str | None = None) -> None:
        """Queue an announcement of the bucket's `revision`. Wait if the queue is full."""
        await self._queue(change, client, client.app_name, revision, reason)

    async def announce_update(self, former: str, after: ClientRecord, revision: int, change: Change) -> None:
        """Queue an announcement of a change. If the application was renamed, first queue one under the old name."""
        if former not in ("", after.app_name):
            await self._queue("updated", after, former, revision, RENAMED)
        await self._queue(change, after, after.app_name, revision, None)

    @contextlib.asynccontextmanager
    async def announcing(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Publish the queue. On a regular exit wait until everything in it is stored.

        If NATS is away, or goes meanwhile, it does not wait. Then the reports are not acknowledged, and another
        registry gets them.
        """
        tasks.create_task(self.run(), name="announce")
        tasks.create_task(self._parked.run(), name="announce to stuck stores")
        yield
        while await self._connection.answers(LAST_ANSWER_SECONDS):
            with contextlib.suppress(TimeoutError):
                # If it takes longer, ask again whether NATS is there.
                async with asyncio.timeout(LAST_ANSWER_SECONDS):
                    await self.drain()
                break

    async def run(self) -> None:
        """Publish the queue, for ever."""
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
        if message_id not in self._ids:
            # The announcement of the same report, sent before, may still be waiting.
            subject = subjects.client_change(client.tenant, client.client_id, change)
            body = codec.encode(_message(change, client, app, reason))
            await self._waiting.put(_ClientAnnouncement(key, events_of(client.tenant), subject, body, message_id))
            self._ids.add(message_id)
            self._queued += 1

    async def _note_stored(self, batch: list[_ClientAnnouncement]) -> None:
        self._ids.difference_update(announcement.message_id for announcement in batch)
        self._stored += len(batch)
        async with self._progress:
            self._progress.notify_all()

    async def _publish(self, batch: list[_ClientAnnouncement]) -> None:
        """Store a batch, each client's announcements in order. After a failure repeat from that announcement on."""
        chains: defaultdict[str, deque[_ClientAnnouncement]] = defaultdict(deque)
        for announcement in batch:
            chains[announcement.key].append(announcement)
        while left := [chain for chain in chains.values() if chain]:
            await for_each(left, self._store_all)
            if any(left):
                await asyncio.sleep(RETRY_SECONDS)

    async def _store_all(self, chain: deque[_ClientAnnouncement]) -> None:
        """Store the announcements of one client. Those that cannot be stored now stay in `chain`."""
        while chain:
            store = chain[0].store
            # One stuck stream must not hold up the other tenants. Later announcements for that stream are parked, too,
            # or they would overtake.
            if self._parked.holds(store) or self._stuck.is_stuck(store, self._loop.time()):
                self._parked.add(store, chain.popleft())
                continue
            try:
                await self._store(chain[0])
            except BridgeError:
                # Keep it first in the chain, because a later change of this client must not be announced before it.
                return
            chain.popleft()

    async def _store(self, announcement: _ClientAnnouncement) -> None:
        store, began = announcement.store, self._loop.time()
        try:
            await self._publish_one(announcement)
        except BridgeError as exc:
            # Since it began: a silent store fails only after all others of its batch were stored, and they wait for it.
            self._stuck.failed(store, began, refused=isinstance(exc, StoreRefused))
            raise
        self._stuck.took(store, self._loop.time())

    async def _publish_one(self, announcement: _ClientAnnouncement) -> None:
        headers, store = {MESSAGE_ID_HEADER: announcement.message_id}, announcement.store
        await self._streams.ensure_known(store)
        try:
            subject, body = announcement.subject, announcement.body
            await jetstream.publish(self._connection, subject, body, headers, stream=store.stream)
        except NoStream:
            # An operator has deleted the stream. Make it again at the next try.
            self._streams.forget(store)
            raise
        except (JetStreamError, PayloadTooLarge) as exc:
            # The fault is in this message, so another try cannot help.
            log.error("the stream %s refused %s: %s", store.stream, announcement.subject, exc)


def _hash(app: str) -> str:
    """Return a hash of a name for the message id, because one change may be announced under several former names."""
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
