"""Waits of commands: for the rest of a body, for an answer. Each has an end, and all end when the process must."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.types import Receive

from agent_api.problems import HttpFault
from protocol.errors import Cancelled

BODY_SECONDS = 30
WATCH_AFTER_SECONDS = 0.05


class CallerGone(Exception):
    """The HTTP caller has closed its connection: nobody reads an answer."""


class Waits:
    """The waits under way. Watchers of callers run in `tasks`."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._open: set[asyncio.Timeout] = set()
        self._given_up = False

    @contextlib.asynccontextmanager
    async def for_body(self) -> AsyncIterator[None]:
        """Bound the reading of a body; raise `HttpFault` (408) after 30 seconds."""
        async with self._wait(asyncio.timeout(BODY_SECONDS), HttpFault(408, "the body was not complete in time")):
            yield

    @contextlib.asynccontextmanager
    async def for_answer(self, receive: Receive) -> AsyncIterator[None]:
        """Cancel what runs inside and raise `CallerGone` when the HTTP caller, whose body has been read, goes away.

        Watching takes a task, so it begins only where the answer takes more than 50 ms.
        """
        watchers: list[asyncio.Task[None]] = []
        patience = asyncio.timeout(None)

        def watch() -> None:
            watchers.append(self._tasks.create_task(_watch(receive, patience), name="watch an HTTP caller"))

        async with self._wait(patience, CallerGone()):
            timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, watch)
            try:
                yield
            finally:
                timer.cancel()
                for watcher in watchers:
                    watcher.cancel()

    def give_up(self) -> None:
        """End every wait: the process has to go. The commands are cancelled."""
        self._given_up = True
        for patience in self._open:
            _end(patience)

    @contextlib.asynccontextmanager
    async def _wait(self, patience: asyncio.Timeout, expired: Exception) -> AsyncIterator[None]:
        try:
            async with patience:
                self._open.add(patience)
                try:
                    yield
                finally:
                    self._open.discard(patience)
        except TimeoutError as exc:
            if not patience.expired():
                raise
            raise self._reason(expired) from exc

    def _reason(self, expired: Exception) -> Exception:
        if not self._given_up:
            return expired
        return Cancelled("the agent API shut down before the command had its answer; the command was cancelled")


async def _watch(receive: Receive, patience: asyncio.Timeout) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    _end(patience)


def _end(patience: asyncio.Timeout) -> None:
    patience.reschedule(asyncio.get_running_loop().time())
