"""Bounded concurrency: one coroutine for each of many items, 128 at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

AT_ONCE = 128
T = TypeVar("T")


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Await `work(item)` for every item, 128 at a time. The first error cancels the rest and is raised unchanged."""
    waiting = iter(items)
    try:
        async with asyncio.TaskGroup() as tasks:
            for first in _take(waiting, AT_ONCE):
                tasks.create_task(_worker(first, waiting, work))
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group


async def _worker(first: T, waiting: Iterator[T], work: Callable[[T], Awaitable[None]]) -> None:
    await work(first)
    for item in waiting:
        await work(item)


def _take(items: Iterator[T], count: int) -> list[T]:
    return [item for _, item in zip(range(count), items, strict=False)]
