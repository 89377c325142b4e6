"""Publishes audit records and keeps each of them until the audit stream has acknowledged it.

A record leaves in one write with the answer of its command, before the answer. So NATS has received the record of every
success that a caller sees.

Each record has its own acknowledgement, because a stream can lose single messages: one that changes its leader, or
has a full queue, drops some and takes the next. If the connection breaks, we do not know which written records are
stored. All are sent again under the same `Nats-Msg-Id`, and the stream ignores the ones that it has.

A record costs no task, timer or future.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import secrets
from collections.abc import AsyncIterator, Iterable
from functools import partial

from nats.aio.msg import Msg

from protocol import codec, subjects
from protocol.audit import AuditRecord
from protocol.errors import Overloaded, PayloadTooLarge, Unavailable
from protocol.runtime.commands.refusal_sums import RefusalSums
from protocol.runtime.commands.unstored_records import UnstoredRecord, UnstoredRecords
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.connection import Connection
from protocol.runtime.settings import ServingSettings
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.stores import TenantStore, audit_of
from protocol.runtime.streams.tenant_stores import TenantStores, is_missing

MAX_WAITING_BYTES = 64 * 1024 * 1024
TICK_SECONDS = 0.5
AT_ONCE = 512  # records that are sent again in one turn of the event loop
PAUSE_SECONDS = 0.01  # between such turns, because a stream's queue takes 10,000 messages and drops the rest
LAST_SECONDS = 0.8  # for the last acknowledgements when the process ends
ASK_AGAIN_SECONDS = 1.0
LOG_SECONDS = 10.0

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def audit_log(
    settings: ServingSettings, connection: Connection, stores: TenantStores
) -> AsyncIterator["AuditLog | None"]:
    """Yield the audit log of a process, or None if `audit` is off. On exit wait 0.8 s for the last acknowledgements."""
    if settings.audit == "off":
        yield None
        return
    log_of_process = AuditLog(connection, stores)
    await log_of_process.start()
    try:
        yield log_of_process
    finally:
        await log_of_process.close()


class AuditLog:
    """Publishes records. `start()` it first, and `close()` it before the connection.

    Each tenant has a stream, which may not exist yet. The first records of a tenant are sent at once, because it mostly
    exists. Meanwhile a registry is asked to make it, and the records are sent again if no stream has taken them.
    """

    def __init__(
        self, connection: Connection, stores: TenantStores, max_waiting_bytes: int = MAX_WAITING_BYTES
    ) -> None:
        self._connection = connection
        self._stores = stores
        # By tenant: stores that took a record since the last reconnect.
        self._taking: dict[str, TenantStore] = {}
        self._loop = asyncio.get_running_loop()
        self._inbox = connection.new_inbox()
        self._process = secrets.token_hex(6)
        self._numbers = itertools.count()
        self._records = UnstoredRecords(max_waiting_bytes)
        self._sums = RefusalSums()
        # By tenant: the last time that we asked a registry for its store.
        self._asked_at: dict[str, float] = {}
        self._ticking: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None
        self._all_stored: asyncio.Future[None] | None = None
        self._stored = 0
        self._failed = 0
        self._failure_lines = LogThrottle(LOG_SECONDS, self._loop.time)
        self._why = ""

    async def start(self) -> None:
        """Subscribe for acknowledgements, and start to send unacknowledged records again."""
        await self._connection.subscribe_directly(f"{self._inbox}.*", self._on_answer)
        self._connection.on_reconnect(self._reconnected)
        self._tick()

    def publish(self, record: AuditRecord, before: bytes = b"", *, at_once: bool = False) -> None:
        """Publish a record, and behind it, in the same write, the framed message `before`.

        With `at_once` the record is written before this returns, because the answer does not leave over NATS.

        Raises `Unavailable` if `before` could not be published. A record that cannot be published raises nothing: it
        waits or is counted as lost, and its command goes on.
        """
        unstored = self._enter(record)
        frame = b"" if unstored is None else unstored.frame
        try:
            self._connection.publish_framed_now(frame + before)
        except Unavailable:
            if unstored is not None:
                self._records.wait(unstored)
                self._send_soon()
            # The record waits here, but the answer is the caller's to keep: let it know.
            if before:
                raise
        else:
            if unstored is not None:
                self._sent(unstored)
            if at_once:
                self._connection.write_now()

    def refused(self, refusal: AuditRecord) -> None:
        """Publish the record of a refusal, or add it to a sum if there are many of its kind."""
        due = self._sums.add(refusal, self._loop.time())
        if due is not None:
            self.publish(due)

    @property
    def is_behind(self) -> bool:
        """Whether records wait to be sent. An answer that is sent now would overtake them."""
        return self._sending is not None

    async def close(self) -> None:
        """Publish the sums, and wait up to 0.8 s for all acknowledgements. The records without one are lost."""
        self._publish_sums(math.inf)
        # A process must end within seconds, so a stream that does not answer costs its last records.
        if self._records:
            self._all_stored = self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_SECONDS):
                    await self._all_stored
        for timer in (self._ticking, self._sending):
            if timer is not None:
                timer.cancel()
        self._fail(self._records.outcomes, "NATS had not acknowledged them when this process ended")
        self._tell_failures(self._failure_lines.flush())

    def counters(self) -> dict[str, int]:
        """Return the counters of `/metrics`: outcomes stored, lost and waiting, and refusals in sums."""
        return {
            "auditStored": self._stored,
            "auditFailed": self._failed,
            "auditWaiting": self._records.outcomes + self._sums.waiting,
            "auditSummed": self._sums.summed,
        }

    # --- the way out ---

    def _enter(self, record: AuditRecord) -> UnstoredRecord | None:
        """Frame a record and keep it. Return None if it is lost, which is counted."""
        number = next(self._numbers)
        key = f"{number:x}"
        owner = record.owner
        unstored = UnstoredRecord(number, key, (owner, record.agent or ""), record.count)
        try:
            subject, body = (
                subjects.audit(owner, record.client_id or subjects.NO_CLIENT, record.outcome),
                codec.encode(record),
            )
            reply, message_id = f"{self._inbox}.{key}", f"{self._process}-{key}"
            frame = self._connection.framed_for_stream(subject, body, reply, message_id)
            self._records.add(unstored, frame)
        except UnicodeEncodeError:
            # Decoded input cannot cause it. If it happens all the same, the command must not fail.
            self._fail(record.count, "they are not valid Unicode")
        except (Overloaded, PayloadTooLarge) as exc:
            self._fail(record.count, exc.message)
        else:
            return unstored
        return None

    def _send_again(self, records: Iterable[UnstoredRecord]) -> bool:
        """Send waiting records. Return False if NATS is away; records that are too large are lost."""
        for record in records:
            if not self._connection.fits(record.frame):
                # A restart may have lowered `max_payload`.
                self._records.drop(record)
                self._fail(record.outcomes, "they are larger than NATS takes")
                continue
            try:
                self._connection.publish_framed_now(record.frame)
            except Unavailable:
                # Put it back in front, so that the records keep their order.
                self._records.wait_first(record)
                return False
            self._sent(record)
        return True

    def _sent(self, record: UnstoredRecord) -> None:
        """Note that a record was written. Ask a registry for its store if that has not taken a record yet."""
        self._records.sent(record, self._loop.time())
        store = self._taking.get(record.holder[0])
        if store is None:
            self._ask_for(audit_of(record.holder[0]))
        else:
            self._stores.wrote(store, len(record.frame))

    def _send_waiting(self) -> None:
        """Send up to 512 waiting records, and go on in 10 ms if there are more."""
        self._sending = None
        if self._send_again(itertools.islice(self._records.due(), AT_ONCE)):
            self._send_soon()

    def _send_soon(self) -> None:
        if self._sending is None and self._connection.connected and self._records.is_due():
            self._sending = self._loop.call_later(PAUSE_SECONDS, self._send_waiting)

    def _reconnected(self) -> None:
        """Send all records again that may be lost, before probes are answered with their outcomes."""
        self._records.disconnected()
        # NATS may have come back empty, so no store is known to exist any more.
        self._taking.clear()
        if self._sending is not None:
            self._sending.cancel()
        self._send_waiting()

    # --- what the stream says ---

    def _on_answer(self, msg: Msg) -> None:
        key = msg.subject.rpartition(".")[2]
        match jetstream.read_stored(self._connection, msg.data, subjects.RETIRED_AUDIT_STREAM):
            case jetstream.Stored.YES:
                self._on_stored(key)
            case jetstream.Stored.NEVER:
                self._lose(key, "they are larger than the stream takes")
            case jetstream.Stored.NO:
                self._on_refused(key, is_there=not is_missing(msg))

    def _on_stored(self, key: str) -> None:
        record = self._records.stored(key)
        if record is None:
            return
        self._stored += record.outcomes
        if record.holder[0] not in self._taking:
            self._taking[record.holder[0]] = audit_of(record.holder[0])
            self._asked_at.pop(record.holder[0], None)
        if self._records.waits:
            self._send_soon()
        self._end_if_all_stored()

    def _on_refused(self, key: str, *, is_there: bool) -> None:
        record = self._records.refused(key)
        if record is None or is_there:
            # The store is full or ill, and a registry cannot help. The record is tried again later.
            return
        store = audit_of(record.holder[0])
        self._taking.pop(store.tenant, None)
        self._stores.forget(store.stream)
        self._ask_for(store)

    def _on_silence(self, store: TenantStore) -> None:
        """Ask a registry to check a store that does not answer.

        If its stream is gone, a follower of the audit hides that: NATS reports no missing responder while one listens.
        """
        # Soon after a reconnect silence is no fault of the store, so the time since then is told, too.
        self._connection.stores.silent(store.stream, self._connection.unbroken_seconds())
        self._stores.forget(store.stream)
        self._ask_for(store)

    def _ask_for(self, store: TenantStore) -> None:
        """Let a registry make a store. Ask once a second at most, because a new store takes a moment to work."""
        now = self._loop.time()
        if now >= self._asked_at.get(store.tenant, -math.inf) + ASK_AGAIN_SECONDS:
            self._asked_at[store.tenant] = now
            self._stores.make(store, partial(self._made, store))

    def _made(self, store: TenantStore, why: str) -> None:
        """Send a tenant's records again to a store that has just been made. It ignores the ones that it has."""
        if not why and store.tenant not in self._taking:
            self._records.try_again(store.tenant)
            self._send_soon()

    def _lose(self, key: str, why: str) -> None:
        record = self._records.lost(key)
        if record is not None:
            self._fail(record.outcomes, why)
            self._end_if_all_stored()

    def _end_if_all_stored(self) -> None:
        if self._all_stored is not None and not self._records and not self._all_stored.done():
            self._all_stored.set_result(None)

    # --- twice a second ---

    def _tick(self) -> None:
        now = self._loop.time()
        self._ticking = self._loop.call_later(TICK_SECONDS, self._tick)
        self._publish_sums(now)
        if self._connection.connected:
            for tenant in self._records.silent(now):
                self._on_silence(audit_of(tenant))
            self._send_again(self._records.trials())
            self._send_soon()
        self._records.tidy()
        self._tell_failures(self._failure_lines.due(0))

    def _publish_sums(self, now: float) -> None:
        for record in self._sums.due(now):
            self.publish(record)

    def _fail(self, count: int, why: str) -> None:
        if count:
            self._failed += count
            self._why = why
            self._tell_failures(self._failure_lines.due(count))

    def _tell_failures(self, count: int) -> None:
        if count:
            sentence = "%d audit records are lost, %d since this process began; the last because: %s"
            log.error(sentence, count, self._failed, self._why)
