"""The backlog of freezes: commands that were sent meanwhile are refused until all of them have come."""

import asyncio
import time
from typing import Any, cast

import pytest
from support.played.sessions import LIMITS
from support.settings import settings_for
from support.wait import until

from gateway import commands
from gateway.commands import CommandSubjects
from gateway.freeze_detector import FROZEN_SECONDS
from gateway.settings import GatewaySettings
from protocol.runtime.connections.turns import Turns
from protocol.runtime.nats.connection import Connection
from protocol.runtime.tokens import Verifier


class HeldBack:
    """A connection whose flushes end when the test says so."""

    def __init__(self) -> None:
        self.flushes: list[asyncio.Future[None]] = []

    async def flush(self) -> None:
        self.flushes.append(asyncio.get_running_loop().create_future())
        await self.flushes[-1]


class Clock:
    """The loop's clock, which stands still during a freeze."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now


async def test_second_freeze_within_the_backlog_of_the_first_has_a_backlog_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commands, "BACKLOG_SETTLE_SECONDS", 0)
    connection, clock, nothing = HeldBack(), Clock(), cast("Any", None)
    turns = Turns(asyncio.get_running_loop().call_soon, time.perf_counter)
    async with asyncio.TaskGroup() as tasks:
        subjects = CommandSubjects(
            cast("Connection", connection),
            nothing,
            Verifier(settings_for(GatewaySettings)),
            nothing,
            tasks,
            LIMITS,
            turns,
        )
        subjects._loop = cast("asyncio.AbstractEventLoop", clock)
        subjects._freeze_detector.observe(clock.now)
        for count in (1, 2):
            clock.now += FROZEN_SECONDS
            assert subjects.freezes == count  # a holder has to doubt after each of them
        await until(lambda: len(connection.flushes) == 2)
        connection.flushes[0].set_result(None)
        await until(lambda: len(asyncio.all_tasks()) == 2)  # this test, and the wait for the second backlog
        assert subjects.has_backlog
        connection.flushes[1].set_result(None)
    assert not subjects.has_backlog
