import asyncio

import pytest

from agent_api.commands.intake import Intake
from protocol.errors import Overloaded, Unavailable


async def test_commands_and_their_bytes_are_bounded() -> None:
    intake = Intake(max_commands=2, max_bytes=100)
    intake.admit(60)
    with pytest.raises(Overloaded):
        intake.admit(41)
    intake.admit(40)
    with pytest.raises(Overloaded):
        intake.admit(0)
    intake.release(60)
    intake.admit(60)
    assert intake.commands == 2


async def test_drain_refuses_new_commands_and_waits_for_those_under_way() -> None:
    intake = Intake()
    intake.admit(1)
    async with asyncio.timeout(2), asyncio.TaskGroup() as tasks:
        draining = tasks.create_task(intake.drain())
        while not intake.draining:
            await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            intake.admit(1)
        assert not draining.done()
        intake.release(1)


async def test_idle_intake_drains_at_once() -> None:
    async with asyncio.timeout(1):
        await Intake().drain()
