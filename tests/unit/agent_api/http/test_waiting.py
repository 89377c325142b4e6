"""Waits for answers end once, whoever ends them first."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.types import Message, Receive

from agent_api.http.waiting import CallerGone, Waits
from protocol.errors import Cancelled


@pytest.mark.parametrize("turns", range(5))
@pytest.mark.parametrize("first", ["caller", "process"])
async def test_wait_ends_once_though_both_sides_leave(first: str, turns: int) -> None:
    leaving, winding_up = asyncio.Event(), asyncio.Event()

    async def receive() -> Message:
        await leaving.wait()
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.wait([asyncio.get_running_loop().create_task(winding_up.wait())])

    async with asyncio.TaskGroup() as tasks:
        waits = Waits(tasks)
        waiting = tasks.create_task(ended(waits, work, receive))
        await asyncio.sleep(0.06)  # the caller is watched after 50 ms
        ends = [leaving.set, waits.give_up]
        for end in ends if first == "caller" else reversed(ends):
            end()
            for _ in range(turns):
                await asyncio.sleep(0)
        winding_up.set()
    assert type(await waiting) in (CallerGone, Cancelled)


async def ended(waits: Waits, work: Callable[[], Coroutine[Any, Any, None]], receive: Receive) -> Exception | None:
    """Return what ended a wait."""
    try:
        await waits.for_answer(work(), receive)
    except (CallerGone, Cancelled) as exc:
        return exc
    return None
