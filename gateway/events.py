"""Publishes applications' events into the tenant's stream. An event with an id is acknowledged and never stored twice.

Every event is published while its frame is handled, with or without an id, so that a client's events keep their order.
The stream's answers come to an inbox. Only the first events of a tenant wait until its stream is known to exist.
"""

import asyncio
import itertools
import time
from functools import partial
from typing import NamedTuple

from nats.aio.msg import Msg

from gateway.limits.unsent_shares import UnsentShares
from gateway.sessions.live import LiveSession
from protocol import codec, subjects
from protocol.access import Principal
from protocol.errors import BridgeError, Code, InvalidFrame, InvalidRequest, Overloaded, Unavailable
from protocol.frames import AckFrame, ErrorFrame, EventFrame
from protocol.messages import MESSAGE_ID_HEADER, EventMessage, timestamp
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.stores import TenantStore, events_of
from protocol.runtime.streams.tenant_stores import TenantStores, is_missing
from protocol.shares import Piece, Shares

MAX_UNACKNOWLEDGED_PER_SESSION = 64
STORE_TIMEOUT_SECONDS = 5.0
MAX_WAITING_BYTES = 8 * 1024 * 1024  # of events of all tenants whose streams may not exist yet
WAITING_FULL = "too many events wait for their tenant's stream; try again in a moment"


class _OutgoingEvent(NamedTuple):
    """An event in flight: its sender and its message. `ident` is the client's own id for it, if there is one."""

    session: LiveSession
    store: TenantStore
    subject: str
    body: bytes
    ident: str | None


class _Unstored(NamedTuple):
    event: _OutgoingEvent
    timer: asyncio.TimerHandle
    why: str


class Events:
    """Publishes events."""

    def __init__(
        self, connection: Connection, stores: TenantStores, store_timeout_seconds: float = STORE_TIMEOUT_SECONDS
    ) -> None:
        self._connection = connection
        self._store_timeout_seconds = store_timeout_seconds
        self._stores = stores
        self._waiting: dict[TenantStore, list[tuple[_OutgoingEvent, Piece]]] = {}
        self._waiting_shares = Shares(MAX_WAITING_BYTES, WAITING_FULL)
        self._loop = asyncio.get_running_loop()
        self._inbox = connection.new_inbox()
        self._numbers = itertools.count()
        self._unstored: dict[str, _Unstored] = {}
        self._shares = UnsentShares()
        self._overloaded = 0

    def counters(self) -> dict[str, int]:
        """Return whether events can be published now, what waits for a stream, and how many were refused for that."""
        return {
            "eventsConnected": int(self._connection.connected),
            "eventsOverloaded": self._overloaded,
            "sharesUsedPercent:events": self._waiting_shares.used_percent,
        }

    async def start(self) -> None:
        """Subscribe for the stream's answers."""
        await self._connection.subscribe_directly(f"{self._inbox}.*", self._on_answer)

    def publish(self, session: LiveSession, frame: EventFrame) -> None:
        """Publish an event. If it has an id, its `ack` follows when it is stored.

        Raises `InvalidFrame` for a malformed name, `Overloaded` if too many wait to be written or stored, `Unavailable`
        while NATS is away, `PayloadTooLarge` above NATS's limit.
        """
        principal, client_id = session.core.principal, session.core.client_id
        try:
            subject = subjects.event(principal.tenant, client_id, frame.event)
        except InvalidRequest as exc:
            raise InvalidFrame(exc.message) from exc
        body = codec.encode(
            EventMessage(
                event=frame.event,
                client_id=client_id,
                user=principal.sub,
                app=session.core.app.name,
                at=timestamp(time.time()),
                source=frame.source,
                data=frame.data,
                id=frame.id,
            )
        )
        try:
            self._require_room(session, principal, len(body), frame.id)
        except Overloaded:
            self._overloaded += 1
            raise
        self._take(_OutgoingEvent(session, events_of(principal.tenant), subject, body, frame.id))

    def _require_room(self, session: LiveSession, owner: Principal, size: int, ident: str | None) -> None:
        if ident is not None and session.events_in_flight >= MAX_UNACKNOWLEDGED_PER_SESSION:
            raise Overloaded("too many events wait to be stored; send the next after an ack")
        self._shares.take((owner.tenant, owner.sub), size, self._connection.posted_bytes, self._connection.unsent_bytes)

    def _take(self, event: _OutgoingEvent) -> None:
        """Publish an event, or queue it behind others until the tenant's stream exists."""
        store = event.store
        if store not in self._waiting and self._stores.knows(store):
            self._publish(event)
        else:
            self._wait(event)
        if event.ident is not None:
            event.session.events_in_flight += 1

    def _wait(self, event: _OutgoingEvent) -> None:
        """Raise `Overloaded` if the tenant's or the user's share is used up, `Unavailable` while NATS is away."""
        if not self._connection.connected:
            raise Unavailable("NATS is away; try again in a moment")
        owner = event.session.core.principal
        try:
            piece = self._waiting_shares.ask((owner.tenant, owner.sub), len(event.body))
        except Overloaded:
            self._overloaded += 1
            raise
        if event.store not in self._waiting:
            self._waiting[event.store] = []
            self._loop.call_soon(self._stores.make, event.store, partial(self._on_store, event.store))
        self._waiting[event.store].append((event, piece))

    def _on_store(self, store: TenantStore, why: str) -> None:
        """Publish the waiting events, even if no registry confirms the stream, because it may exist nevertheless."""
        for event, piece in self._waiting.pop(store):
            piece.release()
            try:
                self._publish(event, why)
            except BridgeError as exc:
                self._refuse(event, exc.message)

    def _publish(self, event: _OutgoingEvent, why: str = "") -> None:
        """Publish an event. `why` is the sentence for the client if no stream stores it."""
        self._stores.wrote(event.store, len(event.body))
        if event.ident is None:
            self._connection.publish_now(event.subject, event.body)
            return
        number = f"{next(self._numbers):x}"
        headers = {MESSAGE_ID_HEADER: f"{event.session.key}.{event.ident}"}
        reply = f"{self._inbox}.{number}"
        self._connection.publish_now(event.subject, event.body, reply=reply, headers=headers)
        timer = self._loop.call_later(self._store_timeout_seconds, self._on_silence, number)
        # Its body is not kept: 64 of the largest for each session would be too much.
        self._unstored[number] = _Unstored(event._replace(body=b""), timer, why)

    def _on_answer(self, msg: Msg) -> None:
        number = msg.subject.rpartition(".")[2]
        unstored = self._unstored.get(number)
        if unstored is None:
            return
        if is_missing(msg):
            self._stores.forget(unstored.event.store.stream)
        self._settle(number, self._is_stored(unstored.event.store, msg.data))

    def _is_stored(self, store: TenantStore, data: bytes) -> bool:
        """Tell whether an answer says that our stream has stored the event."""
        stream = jetstream.read_ack(self._connection, data)
        if stream == store.stream:
            self._stores.took(stream)
        return stream in (store.stream, subjects.RETIRED_EVENTS_STREAM)

    def _on_silence(self, number: str) -> None:
        store = self._unstored[number].event.store
        self._connection.stores.silent(store.stream, self._connection.unbroken_seconds())
        self._stores.forget(store.stream)  # while somebody taps the events, a deleted stream is silent, too
        self._settle(number, False)

    def _settle(self, number: str, stored: bool) -> None:
        """Answer the client's event with `ack` or `error`."""
        unstored = self._unstored.pop(number)
        unstored.timer.cancel()
        event = unstored.event
        if not stored:
            return self._refuse(event, unstored.why or "the event could not be stored just now")
        assert event.ident is not None
        event.session.events_in_flight -= 1
        event.session.send(AckFrame(event.ident))
        return None

    def _refuse(self, event: _OutgoingEvent, why: str) -> None:
        if event.ident is None:
            event.session.send(ErrorFrame(Code.UNAVAILABLE.value, why))
            return
        event.session.events_in_flight -= 1
        sentence = f"{why}; send it again with the same id"
        event.session.send(ErrorFrame(Code.UNAVAILABLE.value, sentence, event.ident))
