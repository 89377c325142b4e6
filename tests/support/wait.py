"""Wait for a condition, never for time."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

from nats.aio.client import Client

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


async def subscribed(client: Client) -> None:
    """Return when the server knows of all subscriptions: a flush of the library's may overtake one, a second can't."""
    await client.flush()
    await client.flush()
