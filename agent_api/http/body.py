"""The body of a request, read as it arrives. Its bytes count against a share, and can be reclaimed for other users."""

import asyncio
import codecs

from starlette.types import Message, Receive

from agent_api.http.waiting import CallerGone
from protocol.errors import Overloaded, PayloadTooLarge
from protocol.shares import Piece

MAX_PASSED_OVER_BYTES = 64 * 1024  # of a refused request's body that is skipped to keep the connection


class IncomingBody:
    """A request body, read by the task that makes this object. `is_partial`: a good part has not arrived yet.

    `length` is the announced length in bytes, or None if the head has none.
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
        """Let `read()` raise this error and drop the bytes, because another user needs the room."""
        self._given_back = error
        self.task.cancel()

    async def read(self, limit_bytes: int, piece: Piece) -> bytes:
        """Read the whole body, and drop a byte order mark (RFC 8259 section 8.1). The piece grows with the bytes.

        Raises `PayloadTooLarge` as soon as the body exceeds the limit, `CallerGone` if the connection closes before its
        end, and `Overloaded` if there is no room for the rest or the bytes were reclaimed.
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
