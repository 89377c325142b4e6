"""The body of a request as it arrives: its bytes are counted when they are there, and may have to be given back."""

import asyncio
import codecs

from starlette.types import Message, Receive

from agent_api.http.waiting import CallerGone
from protocol.errors import Overloaded, PayloadTooLarge
from protocol.shares import Piece

MAX_PASSED_OVER_BYTES = 64 * 1024  # of a request that is refused before it was read, on a connection that goes on


class IncomingBody:
    """A request body, read by the task that makes it. `is_partial` says whether much of it is still to come.

    `length` is what the head announces, None if it does not.
    """

    __slots__ = ("_given_back", "is_partial", "receive", "task")

    def __init__(self, receive: Receive, length: int | None = None) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self._given_back: Overloaded | None = None
        self.receive = receive
        self.is_partial = length is None or length > MAX_PASSED_OVER_BYTES

    def give_back(self, error: Overloaded) -> None:
        """Have `read()` raise this."""
        self._given_back = error
        self.task.cancel()

    async def read(self, limit_bytes: int, piece: Piece) -> bytes:
        """Read the whole body, for which the piece grows, without a byte order mark (RFC 8259 section 8.1).

        Raises `PayloadTooLarge` as soon as it exceeds the limit, `CallerGone` if the connection closes before its end,
        and `Overloaded` if there is no room for the rest, or the received part was given back.
        """
        try:
            return (await self._read(limit_bytes, piece)).removeprefix(codecs.BOM_UTF8)
        except asyncio.CancelledError:
            if self._given_back is None or self.task.uncancel():
                raise
        # Raised outside the `except` and as a new object, because a context's frames, or a reference cycle, would keep
        # the body in memory.
        raise Overloaded(self._given_back.message, details=self._given_back.details)

    async def _read(self, limit_bytes: int, piece: Piece) -> bytes:
        self.is_partial = True
        message = await self.receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body", False) or message["type"] != "http.request":
            return await self._collect(message, limit_bytes, piece)
        self.is_partial = False
        _require_within(len(body), limit_bytes)
        piece.grow(len(body))
        return body

    async def _collect(self, message: Message, limit_bytes: int, piece: Piece) -> bytes:
        """Read a body that comes in pieces; `message` is the first one."""
        body = bytearray()
        while message["type"] == "http.request":
            part = message.get("body", b"")
            self.is_partial = message.get("more_body", False)
            _require_within(len(body) + len(part), limit_bytes)
            piece.grow(len(part))
            body += part
            if not self.is_partial:
                return bytes(body)
            message = await self.receive()
        raise CallerGone


def _require_within(size: int, limit_bytes: int) -> None:
    if size > limit_bytes:
        raise PayloadTooLarge(f"the body exceeds the {limit_bytes} bytes that are accepted")
