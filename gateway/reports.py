"""A gateway's reports to the registry: numbered changes, one report in flight, and all records on request.

- A report is repeated with its number until it is acknowledged, so nothing is lost while the registry is away. Several
  changes of one session meanwhile are reported as one.
- The digest describes the registry's records after the report of the same number. If they differ, the registry pulls
  everything by `sync`.
- Pongs and syncs name the last acknowledged report. If they named a later one, a registry would take its repetition for
  applied, and changes that a dying registry wrote but did not announce would never be announced.
- NATS may restart with a lower `max_payload`. Then reports and pages become smaller. A record that is too large even
  alone is reported without capabilities and metadata, so that it does not block the others.
"""

import asyncio
import contextlib
import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from typing import NamedTuple

import msgspec
import nats.errors

from gateway.sessions.core.session import Session
from gateway.sessions.live import LiveSession
from protocol import codec, subjects
from protocol.errors import BridgeError
from protocol.messages import ErrorResponse
from protocol.records import ClientRecord
from protocol.reports import Digest, EndReason, GatewayPong, Removal, Report, ReportAck, SyncPage
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.connection import Connection

BATCH_SECONDS = 0.02
GOODBYE_SECONDS = 2.0
GOODBYE_WITHOUT_REGISTRY_SECONDS = 0.3  # if no registry serves; a later one will notice the missing gateway
GOODBYE_POLL_SECONDS = 0.05
RETRY_SECONDS = 0.25
REPORT_TIMEOUT_SECONDS = 2.0
MAX_REPORT_BYTES = 256 * 1024
MAX_REPORT_CHANGES = 500
MAX_PAGE_BYTES = 512 * 1024
ENVELOPE_BYTES = 4096  # room for a report's or a page's other fields, and for the headers of the registry's write
LOG_SECONDS = 1.0

log = logging.getLogger(__name__)
_ack_decoder = msgspec.json.Decoder(ReportAck)
_refusal_decoder = msgspec.json.Decoder(ErrorResponse)


class _Told(NamedTuple):
    """A session's state in the last report."""

    revision: int
    app: str
    detached: bool


class _Moved:
    """A session that has moved to another gateway."""


MOVED = _Moved()
_Change = LiveSession | Removal | _Moved


class _Sent(NamedTuple):
    """A report in flight: its number and its changes."""

    number: int
    changes: dict[str, _Change]
    body: bytes


class Reporter:
    """Reports this gateway's sessions to the registry."""

    def __init__(
        self,
        gateway_id: str,
        connection: Connection,
        retry_seconds: float = RETRY_SECONDS,
        goodbye_seconds: float = GOODBYE_SECONDS,
        goodbye_without_registry_seconds: float = GOODBYE_WITHOUT_REGISTRY_SECONDS,
    ) -> None:
        self._gateway_id = gateway_id
        self._connection = connection
        self._retry_seconds = retry_seconds
        self._goodbye_seconds = goodbye_seconds
        self._goodbye_without_registry_seconds = goodbye_without_registry_seconds
        # A dict finds its first entry slowly.
        self._changed: OrderedDict[str, _Change] = OrderedDict()
        # The changes in the report that was sent last.
        self._under_way: dict[str, _Change] = {}
        self._reported: dict[str, _Told] = {}
        self._digest = Digest()
        self._number = 0
        self._settled = GatewayPong(gateway_id, 0, 0, str(self._digest))
        self._too_large_lines = LogThrottle(LOG_SECONDS, asyncio.get_running_loop().time)
        self._wake = asyncio.Event()
        # The time since which NATS has said that no registry serves.
        self._alone_since: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def changed(self, session: LiveSession) -> None:
        """Note that a session is new or that its record has changed."""
        self._note(session.key, session)

    def ended(self, session: LiveSession, reason: EndReason) -> None:
        """Note that a session has ended. If it was never reported, nothing needs to be."""
        key = session.key
        if key in self._reported:
            self._note(key, _removal(session.core, reason))
        else:
            self._changed.pop(key, None)

    def moved(self, session: LiveSession) -> None:
        """Note that a session has moved to another gateway. That one reports it, so we do not remove its record."""
        if session.key in self._reported:
            self._note(session.key, MOVED)
        else:
            self._changed.pop(session.key, None)

    @contextlib.asynccontextmanager
    async def reporting(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Report changes. On a regular exit wait until the registry has everything."""
        tasks.create_task(self.run(), name="report")
        yield
        await self.say_goodbye()

    def pong(self) -> GatewayPong:
        """Return this gateway's sign of life, at the last acknowledged report."""
        return msgspec.structs.replace(self._settled, reporting=self._number != self._settled.number)

    def page(self, sessions: Iterable[LiveSession], after: str) -> SyncPage:
        """Return the reported records in the order of their keys, as many as fit into a message."""
        live = {session.key: session for session in sessions}
        keys = sorted(self._reported)
        records: list[ClientRecord] = []
        size = 0
        for index in range(bisect_right(keys, after), len(keys)):
            session = live.get(keys[index])
            if session is None:
                # It has ended, and the next report removes it.
                continue
            record, added = self._fitting(session.record())
            size += added
            if records and size > min(MAX_PAGE_BYTES, self._room):
                last = records[-1]
                return SyncPage(self._settled.number, records, subjects.client_key(last.tenant, last.client_id))
            records.append(record)
        return SyncPage(self._settled.number, records)

    async def run(self) -> None:
        """Report changes, in batches, for ever."""
        while True:
            await self._wake.wait()
            # Wait a moment, so that clients that connect together go into one report.
            await asyncio.sleep(BATCH_SECONDS)
            # One report at a time: the registry refuses a number that does not follow the last one.
            while self._changed:
                await self._deliver(self._next_report())
            self._wake.clear()
            self._idle.set()

    async def say_goodbye(self) -> None:
        """Wait until a registry has everything. If none answers, a later one will notice the missing gateway."""
        try:
            async with asyncio.timeout(self._goodbye_seconds):
                await self._told_or_alone()
        except TimeoutError:
            log.warning("no registry has acknowledged the end of this gateway")

    async def _told_or_alone(self) -> None:
        """Return when a registry has everything. Raises `TimeoutError` if NATS says for 0.3 s that none serves."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not self._idle.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_POLL_SECONDS):
                    await self._idle.wait()
            alone = loop.time() - max(began, self._alone_since) if self._alone_since is not None else 0.0
            if alone >= self._goodbye_without_registry_seconds:
                raise TimeoutError

    def _note(self, key: str, change: _Change) -> None:
        self._changed[key] = change
        # If the report in flight has to be split, its older change must not come back.
        self._under_way.pop(key, None)
        self._idle.clear()
        self._wake.set()

    @property
    def _room(self) -> int:
        """Return how many bytes of records fit into a message now."""
        return self._connection.max_payload - ENVELOPE_BYTES

    def _fitting(self, record: ClientRecord) -> tuple[ClientRecord, int]:
        """Return a record, reduced if it does not fit into a message, and its size."""
        size = len(codec.encode(record))
        if size <= self._room:
            return record, size
        if count := self._too_large_lines.due():
            log.error(
                "%d records were sent without capabilities, the last of client %s: it has %d bytes, and NATS takes %d "
                "now; raise its max_payload", count, record.client_id, size, self._room,
            )  # fmt: skip
        record = record.reduced()
        return record, len(codec.encode(record))

    def _next_report(self) -> _Sent:
        """Take out the next changes, as many as fit, and include them in the digest."""
        records: list[ClientRecord] = []
        removals: list[Removal] = []
        former: dict[str, str] = {}
        were_detached: list[str] = []
        changes: dict[str, _Change] = {}
        size, room = 0, min(MAX_REPORT_BYTES, self._room)
        while self._changed and len(changes) < MAX_REPORT_CHANGES:
            key, change = next(iter(self._changed.items()))
            if isinstance(change, _Moved):
                # The new gateway reports the record. Removing it here would hide a client that is connected.
                changes[key] = self._changed.pop(key)
                self._cover(key, None)
                continue
            told, added = self._told(change)
            size += added
            # The first change always goes, or a record larger than `room` would hold up all others for ever.
            if changes and size > room:
                break
            changes[key] = self._changed.pop(key)
            if isinstance(told, Removal):
                removals.append(told)
                self._cover(key, None)
            else:
                records.append(told)
                before = self._cover(key, _Told(told.revision, told.app_name, told.is_detached))
                if before is not None:
                    former[key] = before.app
                    were_detached += [key] if before.detached else []
                    size += len(key) + len(before.app.encode())
        self._number += 1
        self._under_way = changes
        report = Report(self._gateway_id, self._number, records, removals, former, were_detached)
        return _Sent(self._number, changes, codec.encode(report))

    def _told(self, change: LiveSession | Removal) -> tuple[ClientRecord | Removal, int]:
        """Return a change's part of a report, and its size in bytes."""
        return (change, len(codec.encode(change))) if isinstance(change, Removal) else self._fitting(change.record())

    def _cover(self, key: str, told: _Told | None) -> _Told | None:
        """Note a session's reported state (None: it has ended), and return the former one."""
        before = self._reported.pop(key, None)
        if before is not None:
            self._digest.toggle(key, before.revision)
        if told is not None:
            self._reported[key] = told
            self._digest.toggle(key, told.revision)
        return before

    async def _deliver(self, report: _Sent) -> None:
        repeated = False
        while (why := await self._refusal(report)) is not None:
            if len(report.body) > self._connection.max_payload:
                # NATS came back with a lower `max_payload`. The same report would be refused for ever.
                report = self._without_changes(report)
                continue
            if not repeated:
                log.warning("the registry did not take report %d (%s); repeating it until it does", report.number, why)
            repeated = True
            await asyncio.sleep(self._retry_seconds)
        self._settled = GatewayPong(self._gateway_id, report.number, len(self._reported), str(self._digest))

    def _without_changes(self, report: _Sent) -> _Sent:
        """Put a report's changes back for smaller reports. Its number must still be sent first, without changes."""
        for key, change in report.changes.items():
            # A newer change of the same session wins.
            self._changed.setdefault(key, change)
        return _Sent(report.number, {}, codec.encode(Report(self._gateway_id, report.number, [], [])))

    async def _refusal(self, report: _Sent) -> str | None:
        """Send a report. Return why it was not acknowledged, or None if it was."""
        try:
            reply = await self._connection.request(subjects.REGISTRY_REPORT, report.body, REPORT_TIMEOUT_SECONDS)
        except nats.errors.NoRespondersError:
            # This is proof that no registry serves; a timeout is not. `say_goodbye()` needs to tell them apart.
            if self._alone_since is None:
                self._alone_since = asyncio.get_running_loop().time()
            return "there is none"
        except TimeoutError:
            return "it does not answer"
        except BridgeError as exc:
            return exc.message
        self._alone_since = None
        try:
            is_taken = codec.decode(_ack_decoder, reply.data).number == report.number
        except BridgeError:
            return _why(reply.data)
        return None if is_taken else "it took another one"


def _removal(core: Session, reason: EndReason) -> Removal:
    return Removal(core.principal.tenant, core.client_id, reason, core.principal.sub, core.app.name, core.revision)


def _why(data: bytes) -> str:
    try:
        return codec.decode(_refusal_decoder, data).error.message
    except BridgeError:
        return "its answer is not ours"
