"""Tell the world that a client has connected, changed or gone: on `client.C.CHANGE`, stored in the events stream.

What has been written to the bucket is announced, in that order, whatever happens to NATS meanwhile: announcements wait
in a bounded queue and are repeated until the stream has them. Their message id names the bucket's revision that they
are about, so that a repeat, be it another registry's, is stored once.
"""

import asyncio
import logging
import time
from functools import partial
from typing import Literal

import msgspec

from protocol import codec, subjects
from protocol.errors import BridgeError
from protocol.messages import MESSAGE_ID_HEADER, ClientChange, timestamp
from protocol.records import ClientRecord
from protocol.runtime import jetstream
from protocol.runtime.jetstream import JetStreamError
from protocol.runtime.nats import Connection
from registry.crowd import for_each

GATEWAY_LOST = "gateway_lost"
UNREPORTED = "unreported"  # gone between two syncs; the gateway did not get to say why
MAX_WAITING = 50_000
BATCH = 500
RETRY_SECONDS = 0.25
Change = Literal["connected", "updated", "disconnected"]

log = logging.getLogger(__name__)


class _Announcement(msgspec.Struct, frozen=True):
    subject: str
    body: bytes
    message_id: str


class Announcer:
    """Announces changes of clients. Start `run()` as a task."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: asyncio.Queue[_Announcement] = asyncio.Queue(MAX_WAITING)

    async def announce(self, change: Change, record: ClientRecord, revision: int, reason: str | None = None) -> None:
        """Queue an announcement of what the bucket's `revision` did; wait where too many are queued already."""
        message = ClientChange(
            change=change,
            client_id=record.client_id,
            user=record.user,
            app=record.app_name,
            at=timestamp(time.time()),
            revision=record.revision,
            reason=reason,
        )
        subject = subjects.client_change(record.tenant, record.client_id, change)
        # No tenant begins with `_`, so no application can take this id with an event's.
        message_id = f"_client.{record.tenant}.{record.client_id}.{revision}"
        await self._waiting.put(_Announcement(subject, codec.encode(message), message_id))

    async def run(self) -> None:
        """Publish what is queued, for ever."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            await self._publish(batch)
            for _ in batch:
                self._waiting.task_done()

    async def drain(self) -> None:
        """Wait until everything queued is stored."""
        await self._waiting.join()

    async def _publish(self, batch: list[_Announcement]) -> None:
        """Store a batch, repeating what failed before anything newer is tried."""
        while batch:
            failed: list[_Announcement] = []
            await for_each(batch, partial(self._store, failed))
            batch = failed
            if batch:
                await asyncio.sleep(RETRY_SECONDS)

    async def _store(self, failed: list[_Announcement], announcement: _Announcement) -> None:
        headers = {MESSAGE_ID_HEADER: announcement.message_id}
        try:
            await jetstream.publish(self._connection, announcement.subject, announcement.body, headers)
        except BridgeError:
            failed.append(announcement)
        except JetStreamError as exc:
            log.error("the events stream refused %s: %s", announcement.subject, exc)
