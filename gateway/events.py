"""Events of applications, published into the stream; one that carries an id is acknowledged and never stored twice.

Every event is published as its frame is handled, whether it has an id or not, so that a client's events keep their
order; the stream's answers come back on an inbox of their own.
"""

import asyncio
import itertools
import logging
import time
from typing import Any, NamedTuple

import msgspec
from nats.aio.msg import Msg

from gateway.sessions import LiveSession
from protocol import codec, subjects
from protocol.errors import BridgeError, Code, InvalidFrame, InvalidRequest, Overloaded
from protocol.frames import AckFrame, ErrorFrame, EventFrame
from protocol.messages import MESSAGE_ID_HEADER, EventMessage, timestamp
from protocol.runtime.nats import Connection

MAX_UNACKNOWLEDGED_PER_SESSION = 64
STORE_TIMEOUT_SECONDS = 5.0

log = logging.getLogger(__name__)


class _PubAck(msgspec.Struct):
    """What JetStream answers to a publish; a stray responder may answer anything."""

    stream: str = ""
    error: Any = None


class _Unstored(NamedTuple):
    session: LiveSession
    ident: str
    timer: asyncio.TimerHandle


_ack_decoder = msgspec.json.Decoder(_PubAck)


class Events:
    """Publishes events."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._inbox = connection.new_inbox()
        self._numbers = itertools.count()
        self._unstored: dict[str, _Unstored] = {}

    async def start(self) -> None:
        """Subscribe for the stream's answers."""
        await self._connection.subscribe(f"{self._inbox}.*", self._on_answer)

    def publish(self, session: LiveSession, frame: EventFrame) -> None:
        """Publish an event; where it has an id, its `ack` follows when it is stored.

        Raises `InvalidFrame` for a name that cannot be one, `Overloaded` where too many wait to be stored,
        `Unavailable` while NATS is away, `PayloadTooLarge` for more than it takes.
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
        if frame.id is None:
            self._connection.publish_now(subject, body)
        else:
            self._store(session, subject, body, frame.id)

    def _store(self, session: LiveSession, subject: str, body: bytes, ident: str) -> None:
        if session.events_in_flight >= MAX_UNACKNOWLEDGED_PER_SESSION:
            raise Overloaded("too many events wait to be stored; send the next after an ack")
        number = f"{next(self._numbers):x}"
        headers = {MESSAGE_ID_HEADER: f"{session.key}.{ident}"}
        self._connection.publish_now(subject, body, reply=f"{self._inbox}.{number}", headers=headers)
        session.events_in_flight += 1
        timer = self._loop.call_later(STORE_TIMEOUT_SECONDS, self._settle, number, False)
        self._unstored[number] = _Unstored(session, ident, timer)

    async def _on_answer(self, msg: Msg) -> None:
        self._settle(msg.subject.rpartition(".")[2], _is_stored(msg.data))

    def _settle(self, number: str, stored: bool) -> None:
        """Tell the client what has become of its event, unless it has been told."""
        event = self._unstored.pop(number, None)
        if event is None:
            return
        event.timer.cancel()
        event.session.events_in_flight -= 1
        if stored:
            event.session.send(AckFrame(event.ident))
        else:
            sentence = "the event could not be stored just now; send it again with the same id"
            event.session.send(ErrorFrame(Code.UNAVAILABLE.value, sentence, event.ident))


def _is_stored(data: bytes) -> bool:
    """Tell whether this is our stream's word that it has the event."""
    try:
        answer = codec.decode(_ack_decoder, data)
    except BridgeError:
        return False
    if answer.error:
        log.error("the event stream refused an event: %s", answer.error)
    return answer.stream == subjects.EVENTS_STREAM and not answer.error
