"""Three gateways, two agent APIs and two registries on one NATS: every pair works, and each may die under load."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.load.ledger import CUT_OFF, SUCCESS, UNREACHED
from support.load.story import Inboxes, Story, told
from support.nats.nats_server import NatsServer
from support.processes.bridge import running_bridge
from support.processes.registry import observer
from support.settings import settings_for
from support.wait import subscribed, until

from protocol.runtime.settings import Settings

LOST_SECONDS = 2
FROZEN_SECONDS = 3
TRUTH_SECONDS = 5
BACK_AT_ONCE_SECONDS = 0.5
LOST, NOT_FOUND, UNAVAILABLE = "client_lost", "client_not_found", "unavailable"


@pytest.fixture
async def story(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Story]:
    """The processes, twelve applications, and callers that have not begun yet."""
    direct, inboxes = settings_for(Settings, private_nats.url), Inboxes()
    async with (
        running_bridge(tmp_path / "bridge", private_nats.url, gateways=3, agent_apis=2, registries=2) as bridge,
        told(bridge, direct, observer(private_nats.url)) as story,
        observer(private_nats.url) as tap,
    ):
        await tap.nats.subscribe("_INBOX.>", cb=inboxes.take)
        await subscribed(tap.nats)
        yield story
        assert inboxes.answered_again() == []
        assert inboxes.answered


async def test_every_agent_reaches_every_application(story: Story) -> None:
    held = await story.hold(story.fleet.clients)
    story.fleet.release.set()
    await story.freed(held, 5)
    await story.end(SUCCESS)
    assert len(held) == len(story.fleet.clients) * len(story.load.ways)


async def test_killed_gateway_loses_its_own_commands_alone(story: Story) -> None:
    victim = story.bridge.gateways[0]
    held = await story.hold(story.fleet.clients)
    lost = story.fleet.on(victim)
    story.load.start(story.tasks)
    await story.load.flows()
    await victim.kill()
    await story.freed(story.ledger.waiting(lost), LOST_SECONDS)
    await story.truth_is_told(TRUTH_SECONDS)
    assert [command.answers for command in held] == [[LOST] if command.client_id in lost else [] for command in held]
    await victim.start()
    await story.load.flows()
    await story.truth_is_told(TRUTH_SECONDS)
    await story.end(SUCCESS, LOST, NOT_FOUND, UNAVAILABLE)


async def test_frozen_gateway_frees_its_callers_and_executes_nothing_when_it_thaws(story: Story) -> None:
    victim = story.bridge.gateways[1]
    frozen = story.fleet.on(victim)
    held = await story.hold(frozen)
    story.load.start(story.tasks)
    await story.load.flows()
    victim.freeze()
    try:
        first_in_freeze = len(story.ledger.commands)
        await story.freed(held, FROZEN_SECONDS)
        await story.load.flows(30)
        abandoned = story.ledger.commands[first_in_freeze:]
    finally:
        victim.thaw()
    await story.truth_is_told(TRUTH_SECONDS)
    await story.load.flows()
    await story.end(SUCCESS, LOST, NOT_FOUND, UNAVAILABLE)
    assert not [each for each in abandoned if each.client_id in frozen and each.executed_by]


async def test_killed_agent_api_cuts_off_its_own_callers_alone(story: Story) -> None:
    victim = story.bridge.agent_apis[0]
    held = await story.hold(story.fleet.clients)
    story.load.start(story.tasks)
    await story.load.flows()
    await victim.kill()
    await story.freed([command for command in held if command.answers], LOST_SECONDS)
    await story.load.flows()
    await victim.start()
    await story.truth_is_told(TRUTH_SECONDS)
    await story.load.flows()
    await story.end(SUCCESS, CUT_OFF, UNREACHED)


async def test_killed_registries_disturb_no_command(story: Story) -> None:
    held = await story.hold(story.fleet.clients)
    story.load.start(story.tasks)
    for victim in story.bridge.registries:
        await story.load.flows()
        await victim.kill()
        await story.fleet.join(1, story.tasks)
        await story.truth_is_told(TRUTH_SECONDS)
        await victim.start()
        await story.truth_is_told(TRUTH_SECONDS)
    assert not any(command.answers for command in held)
    await story.end(SUCCESS)


async def test_gateways_restarted_in_order_lose_no_command(story: Story) -> None:
    story.load.start(story.tasks)
    for gateway in story.bridge.gateways:
        await story.load.flows(100)
        assert await gateway.terminate() == 0
        await story.truth_is_told(TRUTH_SECONDS)
        await gateway.start()
    await story.load.flows(100)
    await story.end(SUCCESS, NOT_FOUND, UNAVAILABLE)


async def test_registry_that_was_frozen_brings_nothing_stale_back(story: Story) -> None:
    story.load.start(story.tasks)
    for registry, gateway in zip(story.bridge.registries, story.bridge.gateways, strict=False):
        await story.load.flows(100)
        registry.freeze()
        await gateway.kill()
        await until(lambda: story.fleet.complete, 10)
        registry.thaw()
        await story.truth_is_told(TRUTH_SECONDS)
        await gateway.start()
        await story.truth_is_told(TRUTH_SECONDS)
    await story.end(SUCCESS, LOST, NOT_FOUND, UNAVAILABLE)


async def test_nats_that_is_back_at_once_loses_no_command_that_an_application_has(
    story: Story, private_nats: NatsServer
) -> None:
    held = await story.hold(story.fleet.clients)
    story.load.start(story.tasks)
    for _ in range(2):
        await story.load.flows()
        killed = time.monotonic()
        private_nats.kill()
        await private_nats.start()
        if time.monotonic() - killed > BACK_AT_ONCE_SECONDS:
            held = []  # this machine is too busy for `at once`: callers need not wait any more
        await story.truth_is_told(TRUTH_SECONDS)
        assert not any(command.answers for command in held)
    await story.end(SUCCESS, LOST, UNAVAILABLE)


async def test_callers_wait_no_longer_for_a_nats_that_stays_away(story: Story, private_nats: NatsServer) -> None:
    story.load.start(story.tasks)
    for _ in range(2):
        await story.load.flows()
        held = await story.hold(story.fleet.clients)
        private_nats.kill()
        await story.freed(held, LOST_SECONDS)
        await private_nats.start()
        await story.truth_is_told(TRUTH_SECONDS)
    await story.load.flows()
    await story.end(SUCCESS, LOST, UNAVAILABLE)
