"""Answers a command with a stream: progress as it comes, then the body of the ordinary answer.

The stream begins with the first progress, or one second after the request has been read. So early errors are ordinary
answers with their own status.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from starlette.types import Message, Receive, Send

from agent_api.commands.admission import MAX_BYTES, MAX_COMMANDS
from agent_api.commands.progress_buffer import ProgressBuffer, size_of
from agent_api.commands.send import OnClientProgress
from agent_api.http import sse
from agent_api.http.asgi import write_answer
from agent_api.http.problems import Header, HttpAnswer
from protocol import codec
from protocol.messages import ProgressMessage

BEGIN_AFTER_SECONDS = 1.0
MAX_WAITING = 8
MAX_WAITING_BYTES = MAX_BYTES // MAX_COMMANDS  # what admission counts for a command, so it bounds all of them together

Work = Callable[[Receive, OnClientProgress], Coroutine[Any, Any, HttpAnswer | None]]


async def stream(work: Work, receive: Receive, send: Send) -> None:
    """Write the progress of `work`, then its answer; nothing if that is None, because the caller has gone.

    `work` notices itself if the caller goes. A slow caller misses progress, except the newest.
    """
    writer = _Writer(receive, send)
    async with asyncio.TaskGroup() as tasks:
        answering = tasks.create_task(work(writer.receive, writer.take), name="answer a streamed command")
        answering.add_done_callback(lambda _: writer.wake())
        while not answering.done():
            await writer.write_on()
    answer = answering.result()
    if answer is not None:
        await writer.finish(answer)


class _Writer:
    """Writes one stream."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._waiting: ProgressBuffer[tuple[str, int], ProgressMessage] = ProgressBuffer(MAX_WAITING, MAX_WAITING_BYTES)
        self._news = asyncio.Event()
        self._request_read = False
        self._begun = False

    async def receive(self) -> Message:
        """Receive from the caller, and notice its end."""
        message = await self._receive()
        if not message.get("more_body", False) and not self._request_read:
            self._request_read = True
            self.wake()
        return message

    def take(self, client_id: str, message: ProgressMessage) -> None:
        """Keep progress until the caller has read the earlier one. Above the bound the oldest is dropped."""
        self._waiting.put((client_id, message.seq), message, size_of(message))
        self.wake()

    def wake(self) -> None:
        """End the wait of `write_on()`."""
        self._news.set()

    async def write_on(self) -> None:
        """Write waiting progress, and a heartbeat after a long silence."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_seconds()):
                await self._news.wait()
        quiet = not self._news.is_set()
        self._news.clear()
        if quiet:
            await self._write(sse.HEARTBEAT)
        await self._write_waiting()

    async def finish(self, answer: HttpAnswer) -> None:
        """Write the waiting progress and the answer. An error before the first byte is an ordinary answer."""
        await self._write_waiting()
        if not self._begun and answer.status != HTTPStatus.OK:
            await write_answer(self._send, self._receive, answer)
            return
        await self._begin(answer.headers)
        await self._write(sse.block(b"response", answer.body))
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _patience_seconds(self) -> float | None:
        if self._begun:
            return sse.HEARTBEAT_SECONDS
        return BEGIN_AFTER_SECONDS if self._request_read else None

    async def _write_waiting(self) -> None:
        while self._waiting:
            await self._write(sse.block(b"progress", codec.encode(self._waiting.pop_oldest())))

    async def _write(self, data: bytes) -> None:
        await self._begin()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _begin(self, headers: tuple[Header, ...] = ()) -> None:
        """Write the head, unless it is written already. Headers that are set later are lost."""
        if not self._begun:
            self._begun = True
            head = [*sse.HEADERS, *headers]
            await self._send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": head})
