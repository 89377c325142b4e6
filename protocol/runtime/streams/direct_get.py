"""Reads messages of a stream by batched direct gets (ADR-31), which leave no consumer behind on the server.

Any replica may answer, even one that lacks the last few messages.
"""

import asyncio
import itertools
from typing import Any, NamedTuple

from nats.aio.msg import Msg

from protocol import codec
from protocol.errors import Unavailable
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams import jetstream

READ_SECONDS = 2.0
_END_OF_BATCH, _NOT_FOUND = "204", "404"


class StoredMessage(NamedTuple):
    """A message of a stream. `stored_at` is the server's time in RFC 3339."""

    sequence: int
    subject: str
    stored_at: str
    data: bytes


class _Batch:
    """The messages of one get, as they arrive."""

    def __init__(self) -> None:
        self.messages: list[StoredMessage] = []
        self.pending = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, msg: Msg) -> None:
        headers = msg.headers or {}
        status = headers.get("Status")
        if self.done.done():
            return
        if status is None and "Nats-Sequence" in headers:
            found = headers["Nats-Subject"], headers["Nats-Time-Stamp"], msg.data
            self.messages.append(StoredMessage(int(headers["Nats-Sequence"]), *found))
        elif status == _NOT_FOUND:
            self.done.set_result(None)
        # The end names the last message sent. If that is not the last one received, some were lost.
        elif status == _END_OF_BATCH and self._is_whole(headers):
            self.pending = int(headers["Nats-Num-Pending"])
            self.done.set_result(None)
        else:
            self.done.set_exception(Unavailable("the stream cannot be read now; try again in a moment"))

    def _is_whole(self, headers: dict[str, str]) -> bool:
        last = self.messages[-1].sequence if self.messages else 0
        return int(headers["Nats-Last-Sequence"]) == last


class StoredMessages:
    """Reads streams. `start()` it first."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = connection.new_inbox()
        self._numbers = itertools.count()
        self._batches: dict[str, _Batch] = {}

    async def start(self) -> None:
        """Subscribe for the answers."""
        await self._connection.subscribe_directly(f"{self._inbox}.*", self._on_answer)

    async def get(self, stream: str, subject: str, batch: int, **start: Any) -> list[StoredMessage]:
        """Return a stream's next messages on `subject`, `batch` at most, from `seq=` or `start_time=` on.

        Raises `Unavailable` if the stream does not answer within two seconds or does not exist.
        """
        found = await self._get(stream, subject, batch, start)
        messages = found.messages
        while found.pending and found.messages and len(messages) < batch:  # the server may cut a batch short
            following = {"seq": messages[-1].sequence + 1}
            found = await self._get(stream, subject, batch - len(messages), following)
            messages += found.messages
        return messages

    async def _get(self, stream: str, subject: str, batch: int, start: dict[str, Any]) -> _Batch:
        reply = f"{self._inbox}.{next(self._numbers):x}"
        found = self._batches[reply] = _Batch()
        request = {"next_by_subj": subject, "batch": batch, **start}
        try:
            operation = f"{jetstream.API}.DIRECT.GET.{stream}"
            self._connection.publish_now(operation, codec.encode(request), reply=reply)
            async with asyncio.timeout(READ_SECONDS):
                await found.done
        except TimeoutError as exc:
            raise Unavailable("the stream does not answer; try again in a moment") from exc
        finally:
            del self._batches[reply]
        return found

    def _on_answer(self, msg: Msg) -> None:
        batch = self._batches.get(msg.subject)
        if batch is not None:
            batch.take(msg)
