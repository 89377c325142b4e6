"""Wait for a condition, never for time."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

T = TypeVar("T")

POLL_SECONDS = 0.01


@overload
async def until(condition: Callable[[], Coroutine[Any, Any, T]], seconds: float = 5) -> T: ...
@overload
async def until(condition: Callable[[], T], seconds: float = 5) -> T: ...
async def until(condition: Callable[[], Any], seconds: float = 5) -> Any:
    """Return the first true value of `condition`, sync or async; raise `TimeoutError` after `seconds`."""
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(POLL_SECONDS)
