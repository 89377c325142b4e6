"""What a gateway tells the registry: numbered reports of what changed, one in flight, and what it holds when asked.

A report is repeated with its number until it is acknowledged, so nothing is lost while the registry is away, and what
changed several times meanwhile is told once. The digest says what the registry must hold when it has applied the report
with the same number; where that differs, the registry pulls everything by `sync`. Pongs and syncs name the last report
that was acknowledged: one that they counted before would look applied when it is repeated, and what a registry wrote
but did not live to announce would never be told.
"""

import asyncio
import logging
from bisect import bisect_right
from collections import OrderedDict
from typing import NamedTuple

import msgspec
import nats.errors

from gateway.session import Session
from gateway.sessions import LiveSession, Sessions
from protocol import codec, subjects
from protocol.errors import BridgeError
from protocol.messages import ErrorResponse
from protocol.records import ClientRecord
from protocol.reports import Digest, EndReason, GatewayPong, Removal, Report, ReportAck, SyncPage
from protocol.runtime.nats import Connection

BATCH_SECONDS = 0.02
GOODBYE_SECONDS = 2.0
RETRY_SECONDS = 0.25
REPORT_TIMEOUT_SECONDS = 2.0
MAX_REPORT_BYTES = 256 * 1024
MAX_REPORT_CHANGES = 500
MAX_PAGE_BYTES = 512 * 1024

log = logging.getLogger(__name__)
_ack_decoder = msgspec.json.Decoder(ReportAck)
_refusal_decoder = msgspec.json.Decoder(ErrorResponse)


class _Told(NamedTuple):
    """What the last report said of a session."""

    revision: int
    app: str


class Reporter:
    """Keeps the registry's view of this gateway true."""

    def __init__(self, gateway_id: str, connection: Connection) -> None:
        self._gateway_id = gateway_id
        self._connection = connection
        self._changed: OrderedDict[str, LiveSession | Removal] = OrderedDict()  # a dict finds its first entry slowly
        self._reported: dict[str, _Told] = {}
        self._digest = Digest()
        self._number = 0
        self._settled = GatewayPong(gateway_id, 0, 0, str(self._digest))
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def changed(self, session: LiveSession) -> None:
        """Note that a session is new or that its record has changed."""
        self._note(session.key, session)

    def ended(self, session: LiveSession, reason: EndReason) -> None:
        """Note that a session has ended; one that was never reported needs no report."""
        key = session.key
        if key in self._reported:
            self._note(key, _removal(session.core, reason))
        else:
            self._changed.pop(key, None)

    async def run(self) -> None:
        """Report what changes, in batches, for ever."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(BATCH_SECONDS)
            while self._changed:
                await self._deliver(self._next_report())
            self._wake.clear()
            self._idle.set()

    async def say_goodbye(self) -> None:
        """Wait until the registry knows everything; where it does not listen, it will miss this gateway by itself."""
        try:
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._idle.wait()
        except TimeoutError:
            log.warning("the registry was not there to be told that this gateway leaves")

    def pong(self) -> GatewayPong:
        """Return this gateway's sign of life, as of the last report that was acknowledged."""
        return msgspec.structs.replace(self._settled, reporting=self._number != self._settled.number)

    def page(self, sessions: Sessions, after: str) -> SyncPage:
        """Return the records that were reported, in the order of their keys, as many as fit."""
        live = {session.key: session for session in sessions}
        keys = sorted(self._reported)
        records: list[ClientRecord] = []
        size = 0
        for index in range(bisect_right(keys, after), len(keys)):
            session = live.get(keys[index])
            if session is None:  # ended: its removal is the next report
                continue
            record = session.record()
            size += len(codec.encode(record))
            if records and size > MAX_PAGE_BYTES:
                last = records[-1]
                return SyncPage(self._settled.number, records, subjects.client_key(last.tenant, last.client_id))
            records.append(record)
        return SyncPage(self._settled.number, records)

    def _note(self, key: str, change: LiveSession | Removal) -> None:
        self._changed[key] = change
        self._idle.clear()
        self._wake.set()

    def _next_report(self) -> bytes:
        """Take the next changes out, as many as fit, and let the digest cover them."""
        records: list[ClientRecord] = []
        removals: list[Removal] = []
        former: dict[str, str] = {}
        size = 0
        while self._changed and len(records) + len(removals) < MAX_REPORT_CHANGES:
            key, change = next(iter(self._changed.items()))
            size += _size(change)
            if (records or removals) and size > MAX_REPORT_BYTES:
                break
            del self._changed[key]
            if isinstance(change, Removal):
                removals.append(change)
                self._cover(key, None)
            else:
                records.append(change.record())
                before = self._cover(key, _Told(change.core.revision, change.core.app.name))
                if before is not None:
                    former[key] = before.app
        self._number += 1
        return codec.encode(Report(self._gateway_id, self._number, records, removals, former))

    def _cover(self, key: str, told: _Told | None) -> _Told | None:
        """Take note of what is told of a session, None for its end, and return what was told before."""
        before = self._reported.pop(key, None)
        if before is not None:
            self._digest.toggle(key, before.revision)
        if told is not None:
            self._reported[key] = told
            self._digest.toggle(key, told.revision)
        return before

    async def _deliver(self, report: bytes) -> None:
        number, repeated = self._number, False
        while not await self._acknowledged(report, number):
            if not repeated:
                log.info("the registry did not take report %d; repeating it until it does", number)
            repeated = True
            await asyncio.sleep(RETRY_SECONDS)
        self._settled = GatewayPong(self._gateway_id, number, len(self._reported), str(self._digest))

    async def _acknowledged(self, report: bytes, number: int) -> bool:
        try:
            reply = await self._connection.request(subjects.REGISTRY_REPORT, report, REPORT_TIMEOUT_SECONDS)
        except (TimeoutError, nats.errors.NoRespondersError, BridgeError):
            log.debug("the registry did not answer report %d", number)
            return False
        try:
            return codec.decode(_ack_decoder, reply.data).number == number
        except BridgeError:
            log.debug("the registry refused report %d: %s", number, _why(reply.data))
            return False


def _removal(core: Session, reason: EndReason) -> Removal:
    return Removal(core.principal.tenant, core.client_id, reason, core.principal.sub, core.app.name, core.revision)


def _size(change: LiveSession | Removal) -> int:
    """Return how many bytes a change takes in a report."""
    return len(codec.encode(change if isinstance(change, Removal) else change.record()))


def _why(data: bytes) -> str:
    try:
        return codec.decode(_refusal_decoder, data).error.message
    except BridgeError:
        return "its answer is not ours"
