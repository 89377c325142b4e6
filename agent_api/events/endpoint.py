"""`GET /api/events`: bare ASGI, for a framework's work at each chunk would be done for each of a thousand readers."""

import asyncio
import random

from starlette.types import Receive, Scope, Send

from agent_api.events import sse
from agent_api.events.hub import Hub
from agent_api.events.positions import Position
from agent_api.events.queries import read_query
from agent_api.events.reader import Reader
from agent_api.http.readers import ReaderStream, serve, valid_seconds, while_valid
from agent_api.http.sse import HEARTBEAT, HEARTBEAT_SECONDS
from agent_api.http.waiting import Waits
from protocol.access import Principal, require_agent
from protocol.runtime.auth import Verifier, bearer

RETRY_MS = (500, 2500)  # at random, so that the readers of a process that ends do not come back all at once


class EventsEndpoint:
    """Serves readers of events."""

    def __init__(self, verifier: Verifier, hub: Hub, waits: Waits) -> None:
        self._verifier = verifier
        self._hub = hub
        self._waits = waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader until it goes away, or must."""
        stream = ReaderStream(receive, send, "events")
        await serve(stream, self._answer(scope, stream), self._waits, receive)

    async def _answer(self, scope: Scope, stream: ReaderStream) -> None:
        """Refuse, or begin a stream, of which any later refusal is the last word."""
        try:
            authorization, last_id = _read_head(scope)
            principal = await self._verifier.verify(bearer(authorization))
            require_agent(principal)
            filters, since = read_query(scope["query_string"])
            async with self._hub.open(principal, filters, last_id or since) as reader:
                await _tell(reader, principal, stream)
        except Exception as exc:
            await stream.end(exc)


async def _tell(reader: Reader, principal: Principal, stream: ReaderStream) -> None:
    """Write what the reader gets, until something ends it."""
    await stream.begin()
    try:
        async with while_valid(principal), reader.while_held():
            known = reader.position
            await stream.tell([sse.opening(random.randint(*RETRY_MS), known)])  # noqa: S311  jitter
            await _pass_on(reader, principal, stream, known)
    except Exception as exc:
        await stream.end(exc)


async def _pass_on(reader: Reader, principal: Principal, stream: ReaderStream, known: Position) -> None:
    """Write what the reader gets, where the other side knows that it may resume from `known`."""
    while True:
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                items = await reader.next()
        except TimeoutError:
            position = reader.position  # which may move on while this is written
            await stream.tell([sse.advance(position) if position != known else HEARTBEAT])
            known = position
            continue
        valid_seconds(principal)  # by the clock on the wall, which a machine that slept has behind it
        await stream.tell(map(sse.write, items))
        known = items[-1].position
        del items  # for it may be long until there are others


def _read_head(scope: Scope) -> tuple[str | None, str]:
    """Return the headers `Authorization` and `Last-Event-ID`."""
    headers = dict(scope["headers"])
    authorization = headers.get(b"authorization")
    last_id = headers.get(b"last-event-id", b"")
    return None if authorization is None else authorization.decode("latin-1"), last_id.decode("latin-1")
