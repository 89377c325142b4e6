"""Alarms go off once, not before their time, and not at all once they are cancelled."""

import asyncio
import gc
import weakref
from typing import Any

from protocol.runtime.alarms import TICK_SECONDS, Alarms


async def test_alarms_go_off_after_their_times_in_their_order() -> None:
    loop, rung = asyncio.get_running_loop(), asyncio.Queue[tuple[str, float]]()
    alarms, now = Alarms(), loop.time()
    for name, ticks in (("late", 4), ("early", 1), ("middle", 2.5)):
        alarms.at(now + ticks * TICK_SECONDS, lambda name=name: rung.put_nowait((name, loop.time())))
    async with asyncio.timeout(5):
        seen = [await rung.get() for _ in range(3)]
    assert [name for name, _ in seen] == ["early", "middle", "late"]
    assert all(at >= now + ticks * TICK_SECONDS for (_, at), ticks in zip(seen, (1, 2.5, 4), strict=True))


async def test_cancelled_alarm_does_not_go_off() -> None:
    alarms, rung = Alarms(), asyncio.Event()
    called: list[str] = []
    alarms.after(0, called.append, "cancelled").cancel()
    alarms.after(TICK_SECONDS, rung.set)
    async with asyncio.timeout(5):
        await rung.wait()
    assert called == []


async def test_alarm_can_be_cancelled_by_one_of_the_same_moment() -> None:
    alarms, rung = Alarms(), asyncio.Event()
    called: list[int] = []

    def call(number: int) -> None:
        called.append(number)
        pair[1 - number].cancel()

    at = asyncio.get_running_loop().time()
    pair = [alarms.at(at, call, number) for number in range(2)]
    alarms.after(2 * TICK_SECONDS, rung.set)
    async with asyncio.timeout(5):
        await rung.wait()
    assert len(called) == 1
    for alarm in pair:
        alarm.cancel()  # which is too late for the one and a repetition for the other


async def test_time_that_has_passed_goes_off_soon() -> None:
    alarms, rung = Alarms(), asyncio.Event()
    alarms.at(asyncio.get_running_loop().time() - 1000, rung.set)
    async with asyncio.timeout(5):
        await rung.wait()


async def test_alarms_go_on_after_a_rest() -> None:
    alarms, rung = Alarms(), asyncio.Queue[int]()
    for number in range(3):
        alarms.after(0, rung.put_nowait, number)
        async with asyncio.timeout(5):
            assert await rung.get() == number
        await asyncio.sleep(2 * TICK_SECONDS)  # nothing waits, so nobody looks


async def test_failure_of_one_is_the_loops_and_leaves_the_others() -> None:
    alarms, rung, failures = Alarms(), asyncio.Event(), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    alarms.after(0, lambda: 1 / 0)
    alarms.after(0, rung.set)
    async with asyncio.timeout(5):
        await rung.wait()
    assert [type(failure["exception"]) for failure in failures] == [ZeroDivisionError]


async def test_ended_alarm_keeps_nothing_alive() -> None:
    class Owner:
        """Knows its alarm, which knows it."""

        def ring(self) -> None:
            """Do nothing."""

    alarms, rung = Alarms(), asyncio.Event()
    owners = [Owner(), Owner()]
    cancelled, gone_off = (alarms.after(0, owner.ring) for owner in owners)
    owners[0].alarm, owners[1].alarm = cancelled, gone_off  # type: ignore[attr-defined]
    cancelled.cancel()
    alarms.after(TICK_SECONDS, rung.set)
    async with asyncio.timeout(5):
        await rung.wait()
    gc.disable()
    try:
        kept = [weakref.ref(owner) for owner in owners]
        owners.clear()
        assert [owner() for owner in kept] == [None, None]
    finally:
        gc.enable()
