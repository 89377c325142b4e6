"""Large commands take turns on the way to gateways, so that a small one never waits behind all of them."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from msgspec import Raw
from support.nats.nats_server import NatsServer
from support.played.stage import SILENCE, Gateway, Stage, ended, staged
from support.wait import until

from protocol.errors import DeadlineExceeded
from protocol.runtime.commands import caller

LARGE = Raw(b'{"text":"' + b"x" * 900_000 + b'"}')


@pytest.fixture
async def stage(private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(caller, "ARRIVAL_SECONDS", 60)  # so only an answer ends the wait for it
    async with staged(private_nats.url) as made:
        yield made


async def answered(stage: Stage, gateway: Gateway, commands: int) -> None:
    """Answer all commands, so that nothing waits any more for one to arrive."""
    for number in range(commands):
        await gateway.reached(number + 1)
        await gateway.answer(number)
    await asyncio.gather(*stage.calls, return_exceptions=True)


def received(gateway: Gateway) -> list[str]:
    """Return the ids of the commands that a gateway has received."""
    return [json.loads(call.data)["requestId"] for call in gateway.calls]


async def test_small_command_goes_ahead_of_the_large_ones_that_wait(stage: Stage) -> None:
    gateway = await stage.gateway(SILENCE)
    for number in range(3):
        stage.start(f"large {number}", parameters=LARGE)
    await gateway.reached()
    stage.start("small")
    await gateway.reached(2)
    assert received(gateway) == ["large 0", "small"]
    await answered(stage, gateway, 4)


async def test_answer_to_a_probe_lets_the_next_one_leave(stage: Stage) -> None:
    gateway = await stage.gateway()
    for number in range(10):
        stage.start(f"large {number}", parameters=LARGE)
    await gateway.reached(10)
    assert received(gateway) == [f"large {number}" for number in range(10)]
    assert [probe["requestIds"] for probe in gateway.probes][:9] == [[]] * 9


async def test_answer_to_a_command_lets_the_next_one_leave(stage: Stage) -> None:
    gateway = await stage.gateway(SILENCE)
    calls = [stage.start(f"large {number}", parameters=LARGE) for number in range(2)]
    await gateway.reached()
    await gateway.answer()
    assert (await calls[0]).request_id == "large 0"
    await answered(stage, gateway, 2)


async def test_one_that_waits_beyond_its_deadline_is_not_sent(stage: Stage) -> None:
    gateway = await stage.gateway(SILENCE)
    stage.start("first", parameters=LARGE)
    await gateway.reached()
    error = await ended(stage.start("late", 200, parameters=LARGE), 5)
    assert isinstance(error, DeadlineExceeded)
    assert "not executed" in error.message
    stage.start("last", parameters=LARGE)  # it is behind all others
    await answered(stage, gateway, 2)
    assert received(gateway) == ["first", "last"]
    assert gateway.cancels == []


async def test_one_that_is_cancelled_while_it_waits_is_not_sent(stage: Stage) -> None:
    gateway = await stage.gateway(SILENCE)
    stage.start("first", parameters=LARGE)
    await gateway.reached()
    cancelled = stage.start("cancelled", parameters=LARGE)
    await until(lambda: stage.caller.in_flight == 2)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    stage.start("last", parameters=LARGE)  # it is behind all others
    await answered(stage, gateway, 2)
    assert received(gateway) == ["first", "last"]
    assert gateway.cancels == []


async def test_one_that_waits_is_not_taken_for_lost(stage: Stage) -> None:
    """Probes ask for the commands that were sent; a gateway knows no others."""
    gateway = await stage.gateway(SILENCE)
    for request_id in ("sent", "waits"):
        stage.start(request_id, parameters=LARGE)
    await until(lambda: any(probe["requestIds"] for probe in gateway.probes))
    assert {tuple(probe["requestIds"]) for probe in gateway.probes} <= {(), ("sent",)}
    await answered(stage, gateway, 2)
