"""`GET /api/audit`: for administrators, who see the records of their own tenant."""

import asyncio
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from agent_api.audit.feed import Feed, Follower, Item, Record
from agent_api.audit.queries import AuditQuery, next_link, read_query
from agent_api.events.positions import Position, epoch_of, parse_position
from agent_api.http import sse
from agent_api.http.asgi import read_head
from agent_api.http.problems import Answer
from agent_api.http.readers import ReaderStream, serve, valid_seconds, while_valid
from agent_api.http.waiting import Waits
from protocol import codec
from protocol.access import Principal, require_admin
from protocol.errors import Conflict, InvalidRequest
from protocol.runtime.audit_history import AuditHistory
from protocol.runtime.auth import Verifier, bearer

MAX_QUERY_FIELDS = 32
NOWHERE = Position("0", 0)  # in a stream that there never was


class AuditEndpoint:
    """Serves pages, and streams to those who ask for server-sent events."""

    def __init__(self, verifier: Verifier, history: AuditHistory, feed: Feed, waits: Waits) -> None:
        self._verifier = verifier
        self._history = history
        self._feed = feed
        self._waits = waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader until it has its page, or goes away."""
        stream = ReaderStream(receive, send, "the audit stream")
        await serve(stream, self._answer(scope, stream), self._waits, receive)

    async def _answer(self, scope: Scope, stream: ReaderStream) -> None:
        try:
            head = read_head(scope["headers"])
            principal = await self._verifier.verify(bearer(head.authorization))
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

    async def _page(self, principal: Principal, query: AuditQuery, fields: list[tuple[str, str]], path: str) -> Answer:
        if query.after is not None:
            info = await self._history.info()
            if query.after.epoch != epoch_of(info.created):
                raise Conflict("`after`: the stream was made anew since; begin without it")
        before = None if query.after is None else query.after.sequence
        page = await self._history.page(principal.tenant, query.wanted, query.limit, before)
        epoch = epoch_of(page.created)
        body = b",".join(with_id(Position(epoch, found.sequence), found.data) for found in page.found)
        link = next_link(path, fields, Position(epoch, page.reached))
        headers = ((b"link", link.encode()),) if page.more else ()
        return Answer(200, b"[%b]" % body, headers)

    # --- a stream ---

    async def _stream(self, principal: Principal, query: AuditQuery, stream: ReaderStream) -> None:
        """Follow; refusals come as ordinary answers before the stream has begun, and as its last word afterwards."""
        async with self._feed.open(principal.tenant, query.wanted, query.after) as follower:
            await stream.begin()
            try:
                async with while_valid(principal):
                    await _tell(follower, principal, stream)
            except Exception as exc:
                await stream.end(exc)


async def _tell(follower: Follower, principal: Principal, stream: ReaderStream) -> None:
    """Write what the follower gets, until something ends it."""
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
        del items  # for it may be long until there are others


def with_id(position: Position, data: bytes) -> bytes:
    """Return a stored record, an object, with the id by which a reader goes on from it."""
    return b'{"id":"%b",%b' % (str(position).encode(), data[1:])


def _advance(position: Position | None) -> bytes:
    """Return an id without data, which a reader remembers and is told of nothing; without one, a heartbeat."""
    return sse.HEARTBEAT if position is None else b"id: %b\n\n" % str(position).encode()


def _block(item: Item) -> bytes:
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
    """Return the query with the place where a reader that comes back was: `Last-Event-ID` goes before `after`.

    One that is none of ours is a place in no stream there is, of which the reader is told as a gap: libraries send what
    they have, and could do nothing about a refusal.
    """
    last = dict(scope["headers"]).get(b"last-event-id")
    if not last:
        return query
    return query._replace(after=parse_position(last.decode("latin-1")) or NOWHERE)
