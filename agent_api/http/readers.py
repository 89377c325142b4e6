"""The base of endless answers: they end if the reader stalls, its token expires or the process stops."""

import asyncio
import contextlib
import logging
import time
import traceback
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any

from starlette.types import Receive, Scope, Send

from agent_api.http import sse
from agent_api.http.asgi import write_answer
from agent_api.http.problems import HttpAnswer, http_answer_of
from agent_api.http.waiting import CallerGone, Waits
from protocol import codec
from protocol.access import Principal
from protocol.errors import BridgeError, Cancelled, Internal, Unauthenticated, Unavailable
from protocol.runtime.clients.denied_agents import DeniedAgents

log = logging.getLogger(__name__)


class ReaderStream:
    """The answer to one reader: a refusal, or a stream of server-sent events. `stream` names it in errors."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, stream: str) -> None:
        self._is_head = scope["method"] == "HEAD"
        self._receive = receive
        self._send = send
        self._stream = stream
        self._begun = False
        self._ended = False
        self._is_whole = True  # whether the output ends with a complete block

    async def begin(self) -> bool:
        """Write the head. From now on errors are events in the stream. Return False for a HEAD request."""
        await self._send({"type": "http.response.start", "status": 200, "headers": [*sse.HEADERS]})
        self._begun = True  # only now, because the write may be cancelled while it waits for room
        if self._is_head:
            await self._write(b"", ends_block=True, more=False)
        return not self._is_head

    async def answer(self, answer: HttpAnswer) -> None:
        """Answer like any other request, instead of a stream."""
        self._ended = True
        await write_answer(self._send, self._receive, answer)

    async def tell(self, blocks: Iterable[bytes]) -> None:
        """Write blocks. Wait while the reader does not read."""
        for data, ends_block in sse.chunks(blocks):
            await self._write(data, ends_block=ends_block)

    async def end(self, error: Exception) -> None:
        """End with a reason: as an ordinary answer, or as the last event of a stream that has begun.

        After half a block no reason can follow. Readers discard that half (WHATWG HTML, section 9.2.6).
        """
        if self._ended:
            return
        reason = _told(error, self._stream)
        _forget_unwritten(error)
        if self._begun:
            last = sse.block(b"end", codec.encode(reason.body())) if self._is_whole else b""
            await self._write(last, ends_block=True, more=False)
        else:
            await self.answer(http_answer_of(reason))

    async def _write(self, data: bytes, *, ends_block: bool, more: bool = True) -> None:
        """Write, and wait for the end of the event loop's turn.

        Bytes reach the socket only at the end of the turn, and only then show whether the reader takes them. Without
        this wait we would buffer everything that a late reader has to catch up on. A cancelled wait writes nothing.
        """
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._is_whole, self._ended = ends_block, not more
        await asyncio.sleep(0)


async def serve(stream: ReaderStream, work: Coroutine[Any, Any, None], waits: Waits, receive: Receive) -> None:
    """Serve one reader until `work` is done, the reader goes away, or the process ends."""
    try:
        await waits.for_answer(work, receive)
    except CallerGone:
        pass
    except Cancelled:  # the reader took nothing; now it reads the end, or the server cuts it off
        await stream.end(Unavailable("this process is shutting down; come back and resume from the last id"))


@contextlib.asynccontextmanager
async def while_valid(principal: Principal, denied: DeniedAgents) -> AsyncIterator[None]:
    """Run the block while the token is valid. It is interrupted even during a write that waits.

    Raises `Unauthenticated` if the token expires, `PermissionDenied` if an administrator disconnects the agent.
    """
    validity = asyncio.timeout(valid_seconds(principal))
    reason: BridgeError = _expired()

    def end(refusal: BridgeError) -> None:
        nonlocal reason
        if not validity.expired():
            reason = refusal
            validity.reschedule(asyncio.get_running_loop().time())

    try:
        async with validity:
            with denied.watching(principal, end):
                yield
    except TimeoutError as exc:
        if not validity.expired():
            raise
        raise reason from exc


def valid_seconds(principal: Principal) -> float:
    """Return the seconds until the token expires. Raises `Unauthenticated` if it has expired."""
    seconds = principal.expires_at - time.time()
    if seconds <= 0:
        raise _expired()
    return seconds


def _expired() -> Unauthenticated:
    return Unauthenticated("the token has expired; get a fresh one and resume from the last id")


def _forget_unwritten(error: BaseException | None) -> None:
    """Drop the frames of an error's traceback. They hold unwritten data, and writing the last event may take long."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _told(error: Exception, stream: str) -> BridgeError:
    """Return the error for a reader of `stream`: `internal` for an unexpected exception, which is logged."""
    if isinstance(error, BridgeError):
        return error
    log.error("a reader of %s failed", stream, exc_info=error)
    return Internal(f"reading {stream} failed; see the log of the process")
