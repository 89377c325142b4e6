"""Events of applications, published into the stream; one that carries an id is acknowledged and never stored twice."""

import asyncio
import logging
import time

from gateway.sessions import LiveSession
from protocol import codec, subjects
from protocol.errors import BridgeError, Internal, InvalidFrame, InvalidRequest, Overloaded, Unavailable
from protocol.frames import AckFrame, ErrorFrame, EventFrame
from protocol.messages import MESSAGE_ID_HEADER, EventMessage, timestamp
from protocol.runtime import jetstream
from protocol.runtime.nats import Connection

MAX_UNACKNOWLEDGED_PER_SESSION = 64

log = logging.getLogger(__name__)


class Events:
    """Publishes events."""

    def __init__(self, connection: Connection, tasks: asyncio.TaskGroup) -> None:
        self._connection = connection
        self._tasks = tasks

    def publish(self, session: LiveSession, frame: EventFrame) -> None:
        """Publish an event; where it has an id, its `ack` follows when it is stored.

        Raises `InvalidFrame` for a name that cannot be one, `Overloaded` where too many wait to be stored,
        `Unavailable` while NATS is away.
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
        session.events_in_flight += 1
        self._tasks.create_task(self._store_then_ack(session, subject, body, ident), name="store an event")

    async def _store_then_ack(self, session: LiveSession, subject: str, body: bytes, ident: str) -> None:
        try:
            await self._stored(subject, body, f"{session.key}.{ident}")
            answer: AckFrame | ErrorFrame = AckFrame(ident)
        except BridgeError as exc:
            answer = ErrorFrame(exc.code.value, exc.message, ident)
        finally:
            session.events_in_flight -= 1
        session.send(answer)

    async def _stored(self, subject: str, body: bytes, message_id: str) -> None:
        """Return when the stream has the event. Raises `Unavailable` where that is not certain."""
        try:
            await jetstream.publish(self._connection, subject, body, {MESSAGE_ID_HEADER: message_id})
        except (Unavailable, Internal, jetstream.JetStreamError) as exc:
            log.warning("an event could not be stored: %s", exc)
            raise Unavailable("the event could not be stored just now; send it again with the same id") from exc
