"""Records of commands on their way into the audit stream: acknowledged, counted, and never in a command's way.

Records are gathered for 50 ms and published together, for what costs most is to be woken by single acknowledgements: a
process that is killed loses those of that time. There is no task, timer or future for a record.
"""

import asyncio
import itertools
import logging

from nats.aio.msg import Msg

from protocol import codec, subjects
from protocol.audit import AuditRecord
from protocol.errors import Unavailable
from protocol.runtime.acknowledgements import Acknowledgements
from protocol.runtime.nats import Connection

GATHER_SECONDS = 0.05
GROUP = 16  # records for each acknowledgement
MAX_WAITING = 8192  # gathered, or published and not acknowledged
LOG_SECONDS = 60.0

log = logging.getLogger(__name__)


class AuditTrail:
    """Publishes records. `start()` it first, `flush()` it before the connection goes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._inbox = connection.new_inbox()
        self._numbers = itertools.count()
        self._gathered: list[tuple[str, bytes]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._acknowledgements = Acknowledgements(subjects.AUDIT_STREAM)
        self._failed = 0
        self._unlogged = 0
        self._log_next = 0.0

    async def start(self) -> None:
        """Subscribe for acknowledgements."""
        await self._connection.subscribe_directly(f"{self._inbox}.*", self._on_answer)

    def publish(self, record: AuditRecord) -> None:
        """Have a record published; whatever goes wrong is counted, for the command that it is about goes on."""
        if len(self._gathered) + self._acknowledgements.waiting >= MAX_WAITING:
            self._fail(1, "the stream does not keep up")
            return
        try:
            body = codec.encode(record)
        except UnicodeEncodeError:  # nothing that was decoded can hold what JSON cannot, but no command may pay for it
            self._fail(1, "they are not valid Unicode")
            return
        if self._timer is None:
            self._timer = self._loop.call_later(GATHER_SECONDS, self.flush)
        subject = subjects.audit(record.tenant, record.client_id or subjects.NO_CLIENT, record.outcome)
        self._gathered.append((subject, body))

    def flush(self) -> None:
        """Publish what is gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._give_up_old()
        records, self._gathered = self._gathered, []
        for start in range(0, len(records), GROUP):
            self._send(records[start : start + GROUP])

    def counters(self) -> dict[str, int]:
        """Return how many records were stored, how many may not have been, and how many wait to be."""
        self._give_up_old()
        known = self._acknowledgements
        waiting = len(self._gathered) + known.waiting
        return {"auditStored": known.stored, "auditFailed": self._failed, "auditWaiting": waiting}

    def _send(self, records: list[tuple[str, bytes]]) -> None:
        reply = f"{self._inbox}.{next(self._numbers):x}"
        try:
            self._connection.publish_group_now(records, reply)
        except Unavailable as exc:
            self._fail(len(records), exc.message)
        else:
            self._acknowledgements.sent(reply, len(records), self._loop.time())

    def _on_answer(self, msg: Msg) -> None:
        self._fail(self._acknowledgements.answered(msg.subject, msg.data), "the stream refused them, or is not there")

    def _give_up_old(self) -> None:
        self._fail(self._acknowledgements.give_up(self._loop.time()), "the stream did not acknowledge them")

    def _fail(self, count: int, why: str) -> None:
        if not count:
            return
        self._failed += count
        self._unlogged += count
        now = self._loop.time()
        if now >= self._log_next:
            log.error("%d audit records may not have been stored: %s", self._unlogged, why)
            self._unlogged, self._log_next = 0, now + LOG_SECONDS
