"""For how long work holds the event loop."""

import asyncio
import gc
import time
from collections.abc import Coroutine
from typing import Any

MAX_HOLD_SECONDS = 0.020  # by the design, for any input


async def longest_hold(work: Coroutine[Any, Any, Any]) -> float:
    """Return the longest CPU time in seconds for which the loop does nothing but a piece of this work."""
    holds = [0.0]

    async def watch() -> None:
        while True:
            begun = time.thread_time()
            try:
                await asyncio.sleep(0)
            finally:  # the work's last piece, too, after which this is cancelled
                holds.append(time.thread_time() - begun)

    gc.collect()
    gc.disable()  # processes have it collect seldom, and never what is there from the beginning
    try:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch())
            await asyncio.sleep(0)
            await work
            watching.cancel()
    finally:
        gc.enable()
    return max(holds)
