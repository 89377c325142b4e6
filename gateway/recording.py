"""What became of claims, written down: outcomes, repeated while the bucket is away, and keys that were not used.

Callers have their answers before; what cannot be written within a minute is counted, and a later request under that key
is told `client_lost`, never executed again.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

from gateway.claims import Claim, Claims
from protocol import codec
from protocol.errors import BridgeError
from protocol.idempotency import Entry
from protocol.messages import CommandResponse
from protocol.runtime.entries import Entries, Stored
from protocol.runtime.jetstream import WrongRevision

GIVE_UP_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 5.0
MAX_UNWRITTEN_BYTES = 32 * 1024 * 1024
MAX_VOID = 10_000

log = logging.getLogger(__name__)


class Recording:
    """Writes to the bucket in tasks of their own; `unwritten` counts them, `not_recorded` those that were given up."""

    def __init__(self, entries: Entries, claims: Claims, tasks: asyncio.TaskGroup, max_outcome_bytes: int) -> None:
        self._entries = entries
        self._claims = claims
        self._tasks = tasks
        self._max_outcome_bytes = max_outcome_bytes
        self._void: dict[str, None] = {}
        self._unwritten_bytes = 0
        self.unwritten = 0
        self.not_recorded = 0

    def remember(self, claim: Claim, response: CommandResponse) -> None:
        """Write an outcome down; until that is done, twins get it from the claim."""
        entry = claim.entry.end(response, self._max_outcome_bytes)
        size = len(codec.encode(entry))
        if self._unwritten_bytes + size > MAX_UNWRITTEN_BYTES:
            self._not_recorded(claim, "too much waits to be written already")
            self._claims.drop(claim)
            return
        self._unwritten_bytes += size
        self._start(self._remember(claim, entry, size))

    async def free(self, claim: Claim) -> None:
        """Remove the entry of a claim that was not executed; where that cannot be done now, go on trying."""
        self._mark_void(claim)
        try:
            await self._entries.remove(claim.key, claim.revision)
        except WrongRevision:
            log.debug("the key of request %s is somebody else's already", claim.entry.request_id)
        except BridgeError:
            self._start(self._free(claim))

    def free_soon(self, claim: Claim) -> None:
        """Take back the entry of a claim that was not executed, if it was written at all, in a task."""
        self._mark_void(claim)
        self._start(self._free(claim))

    def is_void(self, nonce: str) -> bool:
        """Tell whether this gateway made the claim and certainly did not execute its command."""
        return nonce in self._void

    def _mark_void(self, claim: Claim) -> None:
        self._void[claim.entry.claim] = None
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

    async def _remember(self, claim: Claim, entry: Entry, size: int) -> None:
        try:
            why = await self._write(claim, entry)
        finally:
            self._unwritten_bytes -= size
            self._claims.drop(claim)
        if why:
            self._not_recorded(claim, why)

    async def _write(self, claim: Claim, entry: Entry) -> str:
        """Write an ended entry over the claim's; return why that cannot be done, or nothing."""
        expected = claim.revision
        for pause in _pauses():
            try:
                await self._entries.write(claim.key, entry, expected)
                return ""
            except WrongRevision:
                stored = await self._read(claim)
            except BridgeError:
                stored = None
            if stored is None:
                await asyncio.sleep(pause)
            elif stored.entry is None:
                expected = stored.revision  # NATS came back empty
            else:
                done = codec.encode(stored.entry) == codec.encode(entry)  # an acknowledgement was lost
                return "" if done else "it was declared lost by somebody who could not reach this gateway"
        return "the bucket was away for too long"

    async def _free(self, claim: Claim) -> None:
        for pause in _pauses():
            stored = await self._read(claim)
            if stored is None:
                await asyncio.sleep(pause)
                continue
            if stored.entry is None or stored.entry.claim != claim.entry.claim:
                return
            try:
                await self._entries.remove(claim.key, stored.revision)
                return
            except (WrongRevision, BridgeError):
                await asyncio.sleep(pause)

    async def _read(self, claim: Claim) -> Stored | None:
        """Return what lies under a claim's key, None where that cannot be read now."""
        try:
            return await self._entries.read(claim.key)
        except BridgeError:
            return None

    def _not_recorded(self, claim: Claim, why: str) -> None:
        self.not_recorded += 1
        log.error("the outcome of request %s under an idempotency key is not kept: %s", claim.entry.request_id, why)


def _pauses() -> Iterator[float]:
    """Yield what to wait between attempts, for a minute in all."""
    pause, left = FIRST_PAUSE_SECONDS, GIVE_UP_SECONDS
    while left > 0:
        yield pause
        left -= pause
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
