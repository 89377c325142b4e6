"""Pulls all records of a gateway, page by page, and makes the bucket equal to them."""

import asyncio
import logging

import msgspec
import nats.errors

from protocol import codec, subjects
from protocol.errors import BridgeError, Internal, Unavailable
from protocol.records import ClientRecord
from protocol.reports import SyncPage, SyncRequest
from protocol.runtime.nats.connection import Connection
from registry.bucket.store import Store

PAGE_TIMEOUT_SECONDS = 2.0

log = logging.getLogger(__name__)
_pages = msgspec.json.Decoder(SyncPage)


class Syncs:
    """Syncs gateways, each in a task of its own and one at a time."""

    def __init__(self, connection: Connection, store: Store, tasks: asyncio.TaskGroup) -> None:
        self._connection = connection
        self._store = store
        self._tasks = tasks
        self._running: set[str] = set()

    def begin(self, gateway_id: str) -> None:
        """Start to sync a gateway, unless a sync is under way."""
        # Two syncs of one gateway would remove records that the other has just written.
        if gateway_id not in self._running:
            self._running.add(gateway_id)
            self._tasks.create_task(self._sync(gateway_id), name=f"sync {gateway_id}")

    async def _sync(self, gateway_id: str) -> None:
        """Sync. If that fails, the next pongs will ask for it again."""
        try:
            # Look at the bucket before the pull: only records that were there then may be removed as missing.
            before = await self._store.before_sync(gateway_id)
            number, records = await self._pull(gateway_id)
            await self._store.sync(gateway_id, number, records, before)
            log.info("synced %s: %d clients as of report %d", gateway_id, len(records), number)
        except (BridgeError, TimeoutError, nats.errors.Error) as exc:
            log.info("could not sync %s: %s", gateway_id, exc or type(exc).__name__)
        except Exception:
            log.exception("syncing %s failed", gateway_id)
        finally:
            # After a failure, too: the next pongs still show the difference and begin another sync.
            self._running.discard(gateway_id)

    async def _pull(self, gateway_id: str) -> tuple[int, list[ClientRecord]]:
        """Return the records, and the number of the last report that they certainly include."""
        first = page = await self._page(gateway_id, "")
        records = list(page.records)
        while page.after is not None:
            previous, page = page.after, await self._page(gateway_id, page.after)
            if page.after is not None and page.after <= previous:
                raise Internal("the gateway's pages do not advance")
            records += page.records
        return first.number, records

    async def _page(self, gateway_id: str, after: str) -> SyncPage:
        subject = subjects.gateway(gateway_id, "sync")
        try:
            reply = await self._connection.request(subject, codec.encode(SyncRequest(after)), PAGE_TIMEOUT_SECONDS)
        except (TimeoutError, nats.errors.NoRespondersError) as exc:
            raise Unavailable("the gateway does not answer") from exc
        return codec.decode(_pages, reply.data, Internal)
