"""The answer to one request of `/mcp`: JSON if it comes soon and without notifications, else server-sent events.

A stream begins with the first notification, or after 15 s, so that no proxy closes a silent call.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable

from starlette.types import Receive, Send

from agent_api.commands.progress_buffer import ProgressBuffer
from agent_api.http import sse
from agent_api.http.asgi import write_answer
from agent_api.http.problems import Header, HttpAnswer
from agent_api.mcp.messages import RpcAnswer
from agent_api.routes.command_stream import MAX_WAITING, MAX_WAITING_BYTES

Work = Callable[["AnswerWriter"], Awaitable[RpcAnswer | None]]


class AnswerWriter:
    """Writes one answer. A slow caller misses notifications, except the newest."""

    def __init__(self, receive: Receive, send: Send, headers: tuple[Header, ...] = ()) -> None:
        self._receive = receive
        self._send = send
        self._headers = headers
        self._waiting: ProgressBuffer[int, bytes] = ProgressBuffer(MAX_WAITING, MAX_WAITING_BYTES)
        self._serials = itertools.count()
        self._news = asyncio.Event()
        self._begun = False

    async def answer(self, work: Work, on_begin: Callable[[Callable[[], object]], None] | None = None) -> bool:
        """Write the notifications of `work`, then its answer; nothing if that is None, because the caller has gone.

        `on_begin` gets a function that cancels the work. Returns False if it was cancelled; then no answer is written.
        """
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(_awaited(work, self), name="answer a request of MCP")
            working.add_done_callback(lambda _: self._news.set())
            if on_begin is not None:
                on_begin(working.cancel)
            while not working.done():
                await self._write_on()
        if working.cancelled():
            return False
        await self.finish(working.result())
        return True

    def notify(self, message: bytes) -> None:
        """Keep a notification until the caller has read the earlier ones. Above the bound the oldest is dropped."""
        self._waiting.put(next(self._serials), message, len(message))
        self._news.set()

    async def begin(self, *, primed: bool = False) -> None:
        """Begin a stream. A `primed` one starts with an id, which its reader sends when it comes back."""
        if not self._begun:
            self._begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": [*sse.HEADERS, *self._headers]})
        if primed:
            await self._write(b"id: 0\ndata: \n\n")

    async def finish(self, answer: RpcAnswer | None) -> None:
        """Write the waiting notifications and the answer."""
        if answer is None and not self._begun:
            return
        await self._write_waiting()
        if answer is not None and not self._begun:
            await write_answer(self._send, self._receive, HttpAnswer(answer.status, answer.body, self._headers))
            return
        if answer is not None:
            await self._write(sse.block(b"message", answer.body))
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write_on(self) -> None:
        """Write notifications as they come, and a comment after a long silence."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(sse.HEARTBEAT_SECONDS):
                await self._news.wait()
        quiet = not self._news.is_set()
        self._news.clear()
        if quiet:
            await self.begin()
            await self._write(sse.HEARTBEAT)
        await self._write_waiting()

    async def _write_waiting(self) -> None:
        while self._waiting:
            await self.begin()
            await self._write(sse.block(b"message", self._waiting.pop_oldest()))

    async def _write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})


async def _awaited(work: Work, writer: AnswerWriter) -> RpcAnswer | None:
    return await work(writer)
