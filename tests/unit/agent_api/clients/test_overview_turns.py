"""Overviews: an agent makes one at a time, and agents take turns after each step."""

import asyncio

from agent_api.clients.overview_turns import OverviewTurns

ANN, BOB = ("acme", "ann"), ("acme", "bob")


async def make(turns: OverviewTurns, share: tuple[str, str], name: str, steps: int, done: list[str]) -> None:
    async with turns.of(share) as step:
        for _ in range(steps):
            async with step:
                done.append(name)
                await asyncio.sleep(0)


async def test_agents_take_turns_and_one_agents_overviews_wait_for_each_other() -> None:
    turns, done = OverviewTurns(), list[str]()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(make(turns, ANN, f"ann-{number}", 10, done))
        tasks.create_task(make(turns, BOB, "bob", 3, done))
    assert done[:6] == ["ann-0", "bob"] * 3
    assert done[6:] == [f"ann-{number}" for number in range(20) for _ in range(7 if not number else 10)]


async def test_overview_that_is_cancelled_lets_the_next_one_begin() -> None:
    turns, done = OverviewTurns(), list[str]()
    endless = asyncio.get_running_loop().create_task(make(turns, ANN, "endless", 10_000_000, done))
    while not done:
        await asyncio.sleep(0)
    endless.cancel()
    async with asyncio.timeout(5):
        await make(turns, ANN, "next", 1, done)
    assert done[-1] == "next"
