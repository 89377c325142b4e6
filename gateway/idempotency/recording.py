"""Stores the outcomes of reservations, with retries while the store is away, and frees unused keys.

Callers get their answers before. An outcome that cannot be stored within a minute is counted. Then a later request with
that key gets `client_lost`, and is never executed again.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

import msgspec

from gateway.idempotency.waiting import Reservation, Reservations
from protocol import codec
from protocol.errors import BridgeError
from protocol.idempotency import IdempotencyEntry
from protocol.messages import CommandResponse
from protocol.runtime.commands.idempotency_store import IdempotencyStore, StoredEntry
from protocol.runtime.streams.jetstream import StoreRefused, WrongRevision

GIVE_UP_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 5.0
MAX_UNWRITTEN_BYTES = 32 * 1024 * 1024
MAX_VOID = 10_000

log = logging.getLogger(__name__)


class Recording:
    """Writes entries in tasks of their own. `unwritten` counts these, `not_recorded` the outcomes that it gave up."""

    def __init__(
        self, store: IdempotencyStore, reservations: Reservations, tasks: asyncio.TaskGroup, max_outcome_bytes: int
    ) -> None:
        self._store = store
        self._reservations = reservations
        self._tasks = tasks
        self._max_outcome_bytes = max_outcome_bytes
        self._void: dict[str, None] = {}
        self._unwritten_bytes = 0
        self.unwritten = 0
        self.not_recorded = 0

    def remember(self, reservation: Reservation, response: CommandResponse) -> None:
        """Store an outcome. Until that is done, requests with the same key get it from the reservation."""
        entry = reservation.entry.end(response, self._max_outcome_bytes)
        size = len(codec.encode(entry))
        if self._unwritten_bytes + size > MAX_UNWRITTEN_BYTES:
            self._not_recorded(reservation, "too many outcomes wait to be written already")
            self._reservations.drop(reservation)
            return
        self._unwritten_bytes += size
        self._start(self._remember(reservation, entry, size))

    async def free(self, reservation: Reservation) -> None:
        """Remove the entry of a reservation that was not executed. Retry if that fails."""
        self._mark_void(reservation)
        try:
            await self._store.remove(reservation.key, reservation.revision)
        except WrongRevision:
            log.debug("the key of request %s is somebody else's already", reservation.entry.request_id)
        except BridgeError:
            self._start(self._free(reservation))

    def free_soon(self, reservation: Reservation) -> None:
        """Remove the entry of a reservation that was not executed, in a task. It may not have been written at all."""
        self._mark_void(reservation)
        self._start(self._free(reservation))

    def is_void(self, nonce: str) -> bool:
        """Tell whether this gateway made the reservation and certainly did not execute its command."""
        return nonce in self._void

    def _mark_void(self, reservation: Reservation) -> None:
        # If the removal fails for now, the entry is still there. Marked void, it does not block the key meanwhile.
        self._void[reservation.entry.reservation] = None
        if len(self._void) > MAX_VOID:
            del self._void[next(iter(self._void))]

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self.unwritten += 1
        self._tasks.create_task(self._run(work), name="write an idempotency entry")

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("an idempotency entry could not be written")
        finally:
            self.unwritten -= 1

    async def _remember(self, reservation: Reservation, entry: IdempotencyEntry, size: int) -> None:
        try:
            why = await self._write(reservation, entry)
        finally:
            self._unwritten_bytes -= size
            self._reservations.drop(reservation)
        if why:
            self._not_recorded(reservation, why)

    async def _write(self, reservation: Reservation, entry: IdempotencyEntry) -> str:
        """Replace the reservation's entry by an ended one. Return why that failed, or ""."""
        expected = reservation.revision
        for pause in _pauses():
            try:
                await self._store.write(reservation.key, entry, expected)
                return ""
            except StoreRefused:
                # The tenant's store is full. At least remember the execution, so that nobody repeats it.
                entry, stored = self._without_outcome(reservation, entry), None
            except WrongRevision:
                stored = await self._read(reservation)
            except BridgeError:
                stored = None
            if stored is None:
                await asyncio.sleep(pause)
            elif stored.entry is None:
                # NATS came back empty, or an old value came from a replica.
                expected = stored.revision
                await asyncio.sleep(pause)
            else:
                # If the stored entry is ours, only the acknowledgement was lost.
                done = codec.encode(stored.entry) == codec.encode(entry)
                return "" if done else "another process, which could not reach this gateway, has recorded it as lost"
        return "the bucket was away for too long"

    def _without_outcome(self, reservation: Reservation, entry: IdempotencyEntry) -> IdempotencyEntry:
        """Return the entry without its outcome, only with the fact that there was one. The store has room for that."""
        assert isinstance(entry.outcome, msgspec.Raw)
        return reservation.entry.end(entry.answer(reservation.entry.request_id), 0)

    async def _free(self, reservation: Reservation) -> None:
        for pause in _pauses():
            stored = await self._read(reservation)
            if stored is None:
                await asyncio.sleep(pause)
                continue
            if stored.entry is None or stored.entry.reservation != reservation.entry.reservation:
                # The entry was never written, or the key is another attempt's already.
                return
            try:
                await self._store.remove(reservation.key, stored.revision)
                return
            except (WrongRevision, BridgeError):
                await asyncio.sleep(pause)

    async def _read(self, reservation: Reservation) -> StoredEntry | None:
        """Return the entry of a reservation's key, or None if it cannot be read now."""
        try:
            return await self._store.read(reservation.key)
        except BridgeError:
            return None

    def _not_recorded(self, reservation: Reservation, why: str) -> None:
        self.not_recorded += 1
        log.error(
            "the outcome of request %s under an idempotency key is not kept: %s", reservation.entry.request_id, why
        )


def _pauses() -> Iterator[float]:
    """Yield the pauses between attempts, a minute in all."""
    pause, left = FIRST_PAUSE_SECONDS, GIVE_UP_SECONDS
    while left > 0:
        yield pause
        left -= pause
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
