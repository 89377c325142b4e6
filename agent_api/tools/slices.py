"""Long work in slices of 4 ms, and a lock, so that nobody reads a half-built result.

The work is written as a generator that yields wherever it may pause.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Generator
from typing import TypeVar

SLICE_SECONDS = 0.004

T = TypeVar("T")


class Slices:
    """Runs work, and gives way to the event loop whenever a slice is used up."""

    def __init__(self) -> None:
        self._until = time.perf_counter() + SLICE_SECONDS

    async def run(self, steps: Generator[None, None, T]) -> T:
        """Run work to its end and return its result. If this is cancelled, the work can be run on."""
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: T = end.value
                if time.perf_counter() > self._until:  # there may be very much of work that has no steps
                    await self._give_way()
                return result
            if time.perf_counter() > self._until:
                await self._give_way()

    async def _give_way(self) -> None:
        await asyncio.sleep(0)
        self._until = time.perf_counter() + SLICE_SECONDS


def at_once(steps: Generator[None, None, T]) -> T:
    """Run work without a pause and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


class Gate:
    """A lock for one writer or many readers. A waiting writer goes before new readers, so that its turn comes."""

    def __init__(self) -> None:
        self._writer = asyncio.Lock()
        self._readers = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def is_written(self) -> bool:
        """Whether a writer is inside, or waits for readers to leave."""
        return self._writer.locked()

    @property
    def is_free(self) -> bool:
        """Whether nobody is inside."""
        return not self._readers and not self._writer.locked()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Be inside together with other readers."""
        async with self._writer:
            self._readers += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._empty.set()

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Be inside alone."""
        async with self._writer:
            await self._empty.wait()
            yield
