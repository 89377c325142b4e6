"""What endless answers have in common: a stalled reader is noticed, its token ends them, and so does the process."""

import asyncio
import contextlib
import logging
import time
import traceback
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any

from starlette.types import Receive, Send

from agent_api.http import sse
from agent_api.http.asgi import write_answer
from agent_api.http.problems import Answer, answer_of
from agent_api.http.waiting import CallerGone, Waits
from protocol import codec
from protocol.access import Principal
from protocol.errors import BridgeError, Cancelled, Internal, Unauthenticated, Unavailable

log = logging.getLogger(__name__)


class ReaderStream:
    """The answer to one reader of `what`: refused, or begun, told blocks of server-sent events, and ended."""

    def __init__(self, receive: Receive, send: Send, what: str) -> None:
        self._receive = receive
        self._send = send
        self._what = what
        self._begun = False
        self._ended = False
        self._is_whole = True  # whether all that was written are whole blocks

    async def begin(self) -> None:
        """Write the head; what is said from now on is said within the stream."""
        await self._send({"type": "http.response.start", "status": 200, "headers": [*sse.HEADERS]})
        self._begun = True  # only now, for a wait for room may have been cancelled before anything was written

    async def answer(self, answer: Answer) -> None:
        """Answer like any other request, instead of a stream."""
        self._ended = True
        await write_answer(self._send, self._receive, answer)

    async def tell(self, blocks: Iterable[bytes]) -> None:
        """Write blocks, and wait where the other side does not read."""
        for data, ends_block in sse.chunks(blocks):
            await self._write(data, ends_block=ends_block)

    async def end(self, error: Exception) -> None:
        """Say why this ends: by an ordinary answer, or by the last word of what has begun.

        After half a block nothing can be said, and readers discard that half (WHATWG HTML, section 9.2.6).
        """
        if self._ended:
            return
        reason = _told(error, self._what)
        _forget_unwritten(error)
        if self._begun:
            last = sse.block(b"end", codec.encode(reason.body())) if self._is_whole else b""
            await self._write(last, ends_block=True, more=False)
        else:
            await self.answer(answer_of(reason))

    async def _write(self, data: bytes, *, ends_block: bool, more: bool = True) -> None:
        """Write, and wait for the turn's end.

        Only then what was written in it reaches the socket, and shows whether it is taken; a reader with much to catch
        up on would otherwise have all of it buffered. Where the wait for room is cancelled, nothing is written.
        """
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._is_whole, self._ended = ends_block, not more
        await asyncio.sleep(0)


async def serve(stream: ReaderStream, work: Coroutine[Any, Any, None], waits: Waits, receive: Receive) -> None:
    """Serve one reader until `work` is done, or the reader goes away, or the process must."""
    try:
        await waits.for_answer(work, receive)
    except CallerGone:
        pass
    except Cancelled:  # while the reader took nothing; it now begins to, or the server cuts it off
        await stream.end(Unavailable("this process is shutting down; come back and resume from the last id"))


@contextlib.asynccontextmanager
async def while_valid(principal: Principal) -> AsyncIterator[None]:
    """End what goes on within, a write that waits for a reader too, with `Unauthenticated` when the token expires."""
    validity = asyncio.timeout(valid_seconds(principal))
    try:
        async with validity:
            yield
    except TimeoutError as exc:
        if not validity.expired():
            raise
        raise _expired() from exc


def valid_seconds(principal: Principal) -> float:
    """Return for how long the token is still valid; raise `Unauthenticated` where it has expired."""
    seconds = principal.expires_at - time.time()
    if seconds <= 0:
        raise _expired()
    return seconds


def _expired() -> Unauthenticated:
    return Unauthenticated("the token has expired; get a fresh one and resume from the last id")


def _forget_unwritten(error: BaseException | None) -> None:
    """Let go of what the traceback of an error holds, for its last word may wait for long, too."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _told(error: Exception, what: str) -> BridgeError:
    """Return what a reader of `what` is told of an error; what is not one of ours goes to the log instead."""
    if isinstance(error, BridgeError):
        return error
    log.error("a reader of %s failed", what, exc_info=error)
    return Internal(f"reading {what} failed; the log of the process says why")
