"""Many who are woken at once let others get on in between."""

import asyncio

from agent_api.events.wakeups import READERS_A_TURN, Wakeups


async def test_others_get_on_while_many_are_woken_in_their_order() -> None:
    wakeups, woken = Wakeups(), list[int]()
    events = [asyncio.Event() for _ in range(3 * READERS_A_TURN + 1)]

    async def sleep(number: int) -> None:
        await events[number].wait()
        woken.append(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(len(events)):
            tasks.create_task(sleep(number))
        await asyncio.sleep(0)
        for event in events:
            wakeups.wake(event)
        seen = []
        while len(woken) < len(events):
            seen.append(len(woken))
            await asyncio.sleep(0)
    assert woken == list(range(len(events)))
    assert {READERS_A_TURN, 2 * READERS_A_TURN, 3 * READERS_A_TURN} <= set(seen)


async def test_who_is_woken_while_others_are_is_woken_too() -> None:
    wakeups = Wakeups()
    first, second = asyncio.Event(), asyncio.Event()
    wakeups.wake(first)
    await first.wait()
    wakeups.wake(second)
    async with asyncio.timeout(1):
        await second.wait()
