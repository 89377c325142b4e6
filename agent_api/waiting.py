"""Waits for answers: each ends when its HTTP caller goes away, and all end when the process must."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from protocol.errors import Cancelled

WATCH_AFTER_SECONDS = 0.05

R = TypeVar("R")


class CallerGone(Exception):
    """The HTTP caller has closed its connection: nobody reads an answer."""


class Waits:
    """The waits under way. Watchers of callers run in `tasks`."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._watchers: dict[asyncio.Timeout, asyncio.Task[None] | None] = {}
        self._given_up = False

    async def for_answer(self, work: Coroutine[Any, Any, R], receive: Receive) -> R:
        """Return what `work` returns, unless the HTTP caller, whose body has been read, goes away.

        Then `work` is cancelled and `CallerGone` raised; `Cancelled` where the process must go. To watch a caller takes
        a task, so that begins only where the answer takes more than 50 ms.
        """
        patience = asyncio.timeout(None)
        self._watchers[patience] = None
        timer = self._loop.call_later(WATCH_AFTER_SECONDS, self._watch, receive, patience)
        try:
            async with patience:
                return await work
        except TimeoutError as exc:
            if not patience.expired():
                raise
            raise self._reason() from exc
        finally:
            timer.cancel()
            watcher = self._watchers.pop(patience)
            if watcher is not None:
                watcher.cancel()

    def give_up(self) -> None:
        """End every wait, and with it its command."""
        self._given_up = True
        for patience in self._watchers:
            self._end(patience)

    def _watch(self, receive: Receive, patience: asyncio.Timeout) -> None:
        watcher = self._tasks.create_task(self._until_gone(receive, patience), name="watch an HTTP caller")
        self._watchers[patience] = watcher

    async def _until_gone(self, receive: Receive, patience: asyncio.Timeout) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._end(patience)

    def _end(self, patience: asyncio.Timeout) -> None:
        """End a wait; one whose end has begun is still in the table while its work winds up, and cannot end again."""
        if patience.when() is None:
            patience.reschedule(self._loop.time())

    def _reason(self) -> Exception:
        if not self._given_up:
            return CallerGone()
        return Cancelled("the agent API shut down before the command had its answer; the command was cancelled")
