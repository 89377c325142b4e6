"""`GET /api/audit`: the audit records of an administrator's own tenant."""

import asyncio
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from agent_api.events.audit_feed import AuditFeed, AuditItem, AuditReader, Record
from agent_api.http import sse
from agent_api.http.asgi import read_head
from agent_api.http.problems import HttpAnswer
from agent_api.http.readers import ReaderStream, serve, valid_seconds, while_valid
from agent_api.http.sharing import share_turns
from agent_api.http.waiting import Waits
from agent_api.routes.audit_query import AuditQuery, next_link, read_query
from protocol import codec
from protocol.access import Principal, require_admin
from protocol.errors import InvalidRequest
from protocol.runtime.clients.denied_agents import DeniedAgents
from protocol.runtime.commands.audit_history import AuditHistory
from protocol.runtime.streams.positions import Position, parse_position
from protocol.runtime.tokens import Verifier, bearer

MAX_QUERY_FIELDS = 32
NOWHERE = Position("0", 0)  # in a stream that never existed


class AuditEndpoint:
    """Serves pages, or a stream if the request accepts server-sent events."""

    def __init__(
        self, verifier: Verifier, denied: DeniedAgents, history: AuditHistory, feed: AuditFeed, waits: Waits
    ) -> None:
        self._verifier = verifier
        self._denied = denied
        self._history = history
        self._feed = feed
        self._waits = waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader: answer a page, or stream until the reader goes away."""
        stream = ReaderStream(scope, receive, send, "the audit stream")
        await serve(stream, self._answer(scope, stream), self._waits, receive)

    async def _answer(self, scope: Scope, stream: ReaderStream) -> None:
        try:
            head = read_head(scope["headers"])
            principal = await self._verifier.verify(bearer(*head.authorization))
            share_turns(scope, principal)
            require_admin(principal)
            fields = _fields(scope["query_string"])
            query = read_query(fields)
            if sse.is_wanted(head.accept):
                await self._stream(principal, _resumed(query, scope), stream)
            else:
                await stream.answer(await self._page(principal, query, fields, scope["path"]))
        except Exception as exc:
            await stream.end(exc)

    # --- a page ---

    async def _page(
        self, principal: Principal, query: AuditQuery, fields: list[tuple[str, str]], path: str
    ) -> HttpAnswer:
        page = await self._history.page(principal.tenant, query.wanted, query.limit, query.after)
        body = b",".join(with_id(found.position, found.data) for found in page.found)
        link = next_link(path, fields, page.reached)
        headers = ((b"link", link.encode()),) if page.more else ()
        return HttpAnswer(200, b"[%b]" % body, headers)

    # --- a stream ---

    async def _stream(self, principal: Principal, query: AuditQuery, stream: ReaderStream) -> None:
        """Stream records. An error before the stream begins is an ordinary answer; after that it is the last event."""
        async with self._feed.open(principal.tenant, query.wanted, query.after) as follower:
            if not await stream.begin():
                return
            try:
                async with while_valid(principal, self._denied):
                    await _tell(follower, principal, stream)
            except Exception as exc:
                await stream.end(exc)


async def _tell(follower: AuditReader, principal: Principal, stream: ReaderStream) -> None:
    """Write the follower's records until something ends the stream."""
    await stream.tell([_advance(follower.passed)])
    while True:
        try:
            async with asyncio.timeout(sse.HEARTBEAT_SECONDS):
                items = await follower.next()
        except TimeoutError:
            await stream.tell([_advance(follower.passed)])
            continue
        valid_seconds(principal)
        await stream.tell(map(_block, items))
        del items  # free the messages, because the next ones may be long in coming


def with_id(position: Position, data: bytes) -> bytes:
    """Return a stored record, which is a JSON object, with the id for resuming after it."""
    return b'{"id":"%b",%b' % (str(position).encode(), data[1:])


def _advance(position: Position | None) -> bytes:
    """Return an id without data, which a reader remembers without an event; without a position, a heartbeat."""
    return sse.HEARTBEAT if position is None else b"id: %b\n\n" % str(position).encode()


def _block(item: AuditItem) -> bytes:
    ident = b"id: %b\n" % str(item.position).encode()
    if isinstance(item, Record):
        return ident + sse.block(b"record", with_id(item.position, item.data))
    told_of = {"message": "some records may have been missed", "from": str(item.position)}
    return ident + sse.block(b"gap", codec.encode(told_of))


def _fields(query: bytes) -> list[tuple[str, str]]:
    try:
        text = query.decode("ascii")
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS)
    except ValueError as exc:  # of which UnicodeDecodeError is one
        raise InvalidRequest("the query must be percent-encoded UTF-8 and have few parameters") from exc


def _resumed(query: AuditQuery, scope: Scope) -> AuditQuery:
    """Return the query with the position of a returning reader. `Last-Event-ID` counts before `after`.

    A foreign id is answered with a gap, because libraries send the id that they have, and cannot handle a refusal.
    """
    last = dict(scope["headers"]).get(b"last-event-id")
    if not last:
        return query
    return query._replace(after=parse_position(last.decode("latin-1")) or NOWHERE)
