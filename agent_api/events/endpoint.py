"""`GET /api/events`: bare ASGI, for a framework's work at each chunk would be done for each of a thousand readers."""

import asyncio
import contextlib
import random
from collections.abc import Iterator

from starlette.types import Receive, Scope, Send

from agent_api.asgi import write_answer
from agent_api.events import sse
from agent_api.events.cursor import Item
from agent_api.events.hub import Hub
from agent_api.events.queries import read_query
from agent_api.events.reader import Reader
from agent_api.problems import answer_of
from agent_api.readers import told, valid_seconds, write
from agent_api.sse import HEADERS, HEARTBEAT, HEARTBEAT_SECONDS
from agent_api.waiting import CallerGone, Waits
from protocol.access import Principal, require_agent
from protocol.runtime.auth import Verifier, bearer

RETRY_MS = (500, 2500)  # at random, so that the readers of a process that ends do not come back all at once
CHUNK_BYTES = 64 * 1024


class EventsEndpoint:
    """Serves readers of events."""

    def __init__(self, verifier: Verifier, hub: Hub, waits: Waits) -> None:
        self._verifier = verifier
        self._hub = hub
        self._waits = waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader until it goes away, or must."""
        with contextlib.suppress(CallerGone):
            await self._waits.for_answer(self._answer(scope, receive, send), receive)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse by an ordinary answer, or begin a stream, of which any later refusal is the last word."""
        try:
            authorization, last_id = _read_head(scope)
            principal = await self._verifier.verify(bearer(authorization))
            require_agent(principal)
            filters, since = read_query(scope["query_string"])
            async with self._hub.open(principal, filters, last_id or since) as reader:
                await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS]})
                await _tell(reader, principal, send)
        except Exception as exc:
            await write_answer(send, receive, answer_of(told(exc, "events")))


async def _tell(reader: Reader, principal: Principal, send: Send) -> None:
    """Write what the reader gets, until something ends it."""
    try:
        await write(send, sse.opening(random.randint(*RETRY_MS), reader.position))  # noqa: S311  jitter
        await _pass_on(reader, principal, send)
    except Exception as exc:
        await write(send, sse.end(told(exc, "events")), more=False)


async def _pass_on(reader: Reader, principal: Principal, send: Send) -> None:
    known = reader.position  # what the other side resumes from
    while True:
        try:
            async with asyncio.timeout(min(HEARTBEAT_SECONDS, valid_seconds(principal))):
                items = await reader.next()
        except TimeoutError:
            if reader.position != known:
                known = reader.position
                await write(send, sse.advance(known))
            else:
                await write(send, HEARTBEAT)
            continue
        valid_seconds(principal)
        known = items[-1].position
        for chunk in _chunks(items):
            await write(send, chunk)


def _chunks(items: list[Item]) -> Iterator[bytes]:
    """Join what is small and cut what is large: the server below holds a chunk for each reader, whoever stalls."""
    small = bytearray()
    for data in map(sse.write, items):
        if len(small) + len(data) > CHUNK_BYTES and small:
            yield bytes(small)
            small.clear()
        if len(data) <= CHUNK_BYTES:
            small += data
        else:
            yield from (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
    if small:
        yield bytes(small)


def _read_head(scope: Scope) -> tuple[str | None, str]:
    """Return the headers `Authorization` and `Last-Event-ID`."""
    headers = dict(scope["headers"])
    authorization = headers.get(b"authorization")
    last_id = headers.get(b"last-event-id", b"")
    return None if authorization is None else authorization.decode("latin-1"), last_id.decode("latin-1")
