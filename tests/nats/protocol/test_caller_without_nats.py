"""Calls while NATS is away, and right after it is back."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from support.nats.nats_server import NatsServer
from support.played.stage import IN_FLIGHT, OUTCOME, UNKNOWN, Stage, ended, staged
from support.wait import until

from protocol.errors import ClientLost, ClientNotFound, Overloaded, Unavailable
from protocol.runtime.commands import caller as module


@pytest.fixture
async def stage(private_nats: NatsServer) -> AsyncIterator[Stage]:
    async with staged(private_nats.url) as made:
        yield made


async def test_command_waits_for_a_nats_that_has_just_gone(stage: Stage, private_nats: NatsServer) -> None:
    gateway = await stage.gateway()
    private_nats.stop()
    await until(lambda: not stage.connection.connected)
    call = stage.start()
    await private_nats.start()
    await gateway.reached()
    await gateway.answer()
    assert (await call).status == "success"


async def test_nats_away_for_longer_is_unavailable_at_once(stage: Stage, private_nats: NatsServer) -> None:
    private_nats.stop()
    await until(lambda: stage.connection.away_seconds() > 1)
    async with asyncio.timeout(0.2):
        with pytest.raises(Unavailable):
            await stage.call()
    await private_nats.start()


async def test_nats_that_does_not_come_back_is_unavailable_after_a_second(
    stage: Stage, private_nats: NatsServer
) -> None:
    private_nats.stop()
    await until(lambda: not stage.connection.connected)
    assert isinstance(await ended(stage.start(), 2), Unavailable)
    await private_nats.start()


async def test_commands_that_wait_for_nats_are_bounded(
    stage: Stage, private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_FOR_NATS", 2)
    private_nats.stop()
    await until(lambda: not stage.connection.connected)
    calls = [stage.start() for _ in range(3)]
    assert isinstance(await ended(calls[2], 0.5), Overloaded)
    await private_nats.start()
    assert {type(await ended(call, 3)) for call in calls[:2]} == {ClientNotFound}


async def test_restart_of_nats_loses_no_waiting_command(stage: Stage, private_nats: NatsServer) -> None:
    """The gateway is back a second later than the caller, and the reply was lost meanwhile."""
    gateway = await stage.gateway()
    call = stage.start()
    await until(lambda: gateway.probes)
    await gateway.vanish()
    private_nats.stop()
    await private_nats.start()
    await until(lambda: stage.connection.unbroken_seconds() > 1)
    assert not call.done()
    returned = await stage.gateway(OUTCOME)
    returned.calls = gateway.calls
    async with asyncio.timeout(3):
        assert (await call).result == msgspec.Raw(b'"done"')


async def test_gateway_that_never_comes_back_after_a_restart_of_nats_is_lost(
    stage: Stage, private_nats: NatsServer
) -> None:
    gateway = await stage.gateway()
    call = stage.start()
    await gateway.reached()
    await gateway.vanish()
    private_nats.stop()
    await private_nats.start()
    await until(lambda: stage.connection.connected)
    assert isinstance(await ended(call, 4), ClientLost)


async def test_unknown_does_not_count_right_after_a_reconnect(stage: Stage, private_nats: NatsServer) -> None:
    """In a cluster the probe may take another way than the command, and be there first."""
    gateway = await stage.gateway()
    call = stage.start()
    await until(lambda: gateway.probes)
    private_nats.stop()
    await private_nats.start()
    gateway.probed, seen = UNKNOWN, len(gateway.probes)
    await until(lambda: len(gateway.probes) > seen)
    gateway.probed = IN_FLIGHT
    await until(lambda: len(gateway.probes) > seen + 1)
    assert not call.done()
    await gateway.answer()
    assert (await call).status == "success"
