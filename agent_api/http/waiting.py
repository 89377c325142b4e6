"""Waits for answers: each ends when its HTTP caller goes away, and all end when the process must."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from protocol.errors import Cancelled
from protocol.runtime.alarms import Alarms

WATCH_AFTER_SECONDS = 0.05

R = TypeVar("R")


class CallerGone(Exception):
    """The HTTP caller has closed its connection: nobody reads an answer."""


class _Wait:
    """A wait in progress: the work of `asyncio.timeout` at a third of the cost, because every command pays it."""

    __slots__ = ("_task", "ended", "watcher")

    def __init__(self, task: "asyncio.Task[Any]") -> None:
        self._task = task
        self.ended = False
        self.watcher: asyncio.Task[None] | None = None

    def end(self) -> None:
        """Cancel the work, unless it is ending already."""
        if not self.ended:
            self.ended = True
            self._task.cancel()

    def take_back(self) -> bool:
        """Take back the cancellation by `end()`; return whether there was one, and none by anybody else."""
        return self.ended and self._task.uncancel() == 0


def _current_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task


class Waits:
    """The waits under way. Watchers of callers run in `tasks`."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._alarms = Alarms()
        self._under_way: set[_Wait] = set()
        self._given_up = False

    async def for_answer(
        self, work: Coroutine[Any, Any, R], receive: Receive, task: "asyncio.Task[Any] | None" = None
    ) -> R:
        """Return the result of `work`, unless the HTTP caller goes away. Its body must have been read.

        Then `work` is cancelled and `CallerGone` raised, or `Cancelled` if the process must stop. Watching a caller
        takes a task, so it begins only if the answer takes more than 50 ms. `task` is the calling task, if known.
        """
        wait = _Wait(task or _current_task())
        self._under_way.add(wait)
        alarm = self._alarms.after(WATCH_AFTER_SECONDS, self._watch, receive, wait)
        try:
            return await work
        except asyncio.CancelledError as exc:
            if wait.take_back():
                raise self._reason() from exc
            raise
        finally:
            alarm.cancel()
            self._under_way.discard(wait)
            if wait.watcher is not None:
                wait.watcher.cancel()

    def give_up(self) -> None:
        """End every wait, and with it its command."""
        self._given_up = True
        for wait in self._under_way:
            wait.end()

    def _watch(self, receive: Receive, wait: _Wait) -> None:
        wait.watcher = self._tasks.create_task(self._until_gone(receive, wait), name="watch an HTTP caller")

    async def _until_gone(self, receive: Receive, wait: _Wait) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        wait.end()

    def _reason(self) -> Exception:
        if not self._given_up:
            return CallerGone()
        return Cancelled("the agent API shut down before the command had its answer; the command was cancelled")
