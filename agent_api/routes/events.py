"""`GET /api/events`: bare ASGI, because a framework costs time for each chunk of each of a thousand readers."""

import asyncio
import random

from starlette.types import Receive, Scope, Send

from agent_api.events.hub import Hub
from agent_api.events.reader import Reader
from agent_api.http.asgi import read_head
from agent_api.http.readers import ReaderStream, serve, valid_seconds, while_valid
from agent_api.http.sharing import share_turns
from agent_api.http.sse import HEARTBEAT, HEARTBEAT_SECONDS
from agent_api.http.waiting import Waits
from agent_api.routes import events_sse
from agent_api.routes.events_query import read_query
from protocol.access import Principal, require_agent
from protocol.runtime.clients.denied_agents import DeniedAgents
from protocol.runtime.streams.positions import Position
from protocol.runtime.tokens import Verifier, bearer

RETRY_MS = (500, 2500)  # at random, so that the readers of a stopped process do not all come back at once


class EventsEndpoint:
    """Serves readers of events."""

    def __init__(self, verifier: Verifier, denied: DeniedAgents, hub: Hub, waits: Waits) -> None:
        self._verifier = verifier
        self._denied = denied
        self._hub = hub
        self._waits = waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader until it goes away or is ended."""
        stream = ReaderStream(scope, receive, send, "events")
        await serve(stream, self._answer(scope, stream), self._waits, receive)

    async def _answer(self, scope: Scope, stream: ReaderStream) -> None:
        """Refuse, or begin a stream. A later error is its last event."""
        try:
            head, last_id = read_head(scope["headers"]), _last_event_id(scope)
            principal = await self._verifier.verify(bearer(*head.authorization))
            share_turns(scope, principal)
            require_agent(principal)
            filters, since = read_query(scope["query_string"])
            async with self._hub.open(principal, filters, last_id or since) as reader:
                await _tell(reader, principal, self._denied, stream)
        except Exception as exc:
            await stream.end(exc)


async def _tell(reader: Reader, principal: Principal, denied: DeniedAgents, stream: ReaderStream) -> None:
    """Write the reader's messages until something ends the stream."""
    if not await stream.begin():
        return
    try:
        async with while_valid(principal, denied), reader.while_held():
            known = reader.position
            await stream.tell([events_sse.opening(random.randint(*RETRY_MS), known)])  # noqa: S311  jitter
            await _pass_on(reader, principal, stream, known)
    except Exception as exc:
        await stream.end(exc)


async def _pass_on(reader: Reader, principal: Principal, stream: ReaderStream, known: Position) -> None:
    """Write the reader's messages. `known` is the last position that the reader has got."""
    while True:
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                items = await reader.next()
        except TimeoutError:
            position = reader.position  # it may move while this is written
            await stream.tell([events_sse.advance(position) if position != known else HEARTBEAT])
            known = position
            continue
        valid_seconds(principal)  # by the wall clock, because a timer does not run while the machine sleeps
        await stream.tell(map(events_sse.write, items))
        known = items[-1].position
        del items  # free the messages, because the next ones may be long in coming


def _last_event_id(scope: Scope) -> str:
    return dict(scope["headers"]).get(b"last-event-id", b"").decode("latin-1")  # type: ignore[no-any-return]
