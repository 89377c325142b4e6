"""Each success that a caller was told is in the audit once, whatever process dies, freezes or starts again meanwhile.

Callers' commands carry a number in their parameters, which are recorded here. So the ledger, which callers write, can
be held against the audit, which the processes write.
"""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.load.ledger import CUT_OFF, SUCCESS, UNREACHED
from support.load.story import Story, told
from support.nats.audit import Record, stored
from support.nats.nats_server import NatsServer
from support.processes.bridge import running_bridge
from support.processes.child import Process
from support.processes.registry import observer
from support.settings import settings_for
from support.wait import until

from protocol.runtime.settings import Settings

TRUTH_SECONDS = 20  # other stories tell how soon; here nothing is to be missing on a busy machine
FLOW_SECONDS = 60
ANSWERS = (SUCCESS, CUT_OFF, UNREACHED, "client_lost", "client_not_found", "unavailable")


@pytest.fixture
async def story(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Story]:
    """Two gateways, two agent APIs and a registry, under load from the start."""
    direct = settings_for(Settings, private_nats.url)
    counts = {"gateways": 2, "agent_apis": 2}
    async with (
        running_bridge(tmp_path / "bridge", private_nats.url, **counts, audit_parameters="on") as bridge,
        told(bridge, direct, observer(private_nats.url)) as story,
    ):
        story.load.start(story.tasks)
        await story.load.flows(300, FLOW_SECONDS)
        yield story


def decisions(records: list[Record]) -> Counter[tuple[str, str]]:
    """Return how often each decision is recorded: a request, and who decided."""
    return Counter((record["requestId"], record["by"]) for record in records)


def numbers(records: list[Record], outcome: str) -> Counter[int]:
    """Return how often this outcome of each command of the ledger is recorded."""
    return Counter(record["parameters"]["number"] for record in records if record["outcome"] == outcome)


async def hears(story: Story, outcome: str, more: int) -> None:
    """Wait until callers have heard an outcome so many times more."""
    wanted = story.ledger.outcomes()[outcome] + more
    await until(lambda: story.ledger.outcomes()[outcome] >= wanted, 30)


async def compare(story: Story) -> None:
    """End the load, and hold the ledger against the audit."""
    await story.truth_is_told(TRUTH_SECONDS)
    await story.load.flows(300, FLOW_SECONDS)
    await story.end(*ANSWERS)
    for process in story.bridge.processes:
        assert await process.terminate() == 0
    records = [record for _, record in await stored(story.bridge.nats_url)]
    told_of = {command.number for command in story.ledger.commands if SUCCESS in command.answers}
    recorded = numbers(records, SUCCESS)
    assert told_of - recorded.keys() == set(), "successes without a record"
    assert [decision for decision, count in decisions(records).items() if count > 1] == []
    assert [number for number, count in recorded.items() if count > 1] == []
    for outcome in ("unavailable", "client_lost"):
        heard = {each.number for each in story.ledger.commands if each.over_http and outcome in each.answers}
        assert heard - numbers(records, outcome).keys() == set(), f"{outcome} without a record"
    assert "audit records are lost" not in story.bridge.log
    assert len(told_of) > 600


async def test_kill_9_of_gateways(story: Story) -> None:
    for _ in range(2):
        for gateway in story.bridge.gateways:
            await story.load.flows(100, FLOW_SECONDS)
            await gateway.kill()
            await gateway.start()
    await compare(story)


async def test_kill_9_of_agent_apis_and_registries(story: Story) -> None:
    victims: list[Process] = [*story.bridge.agent_apis, *story.bridge.registries]
    for victim in victims:
        await story.load.flows(100, FLOW_SECONDS)
        await victim.kill()
        await victim.start()
    await compare(story)


async def test_kill_9_of_nats(story: Story, private_nats: NatsServer) -> None:
    for _ in range(3):
        await story.load.flows(100, FLOW_SECONDS)
        private_nats.kill()
        await private_nats.start()
        await story.truth_is_told(TRUTH_SECONDS)
    await compare(story)


async def test_nats_that_is_away_for_seconds(story: Story, private_nats: NatsServer) -> None:
    for _ in range(2):
        private_nats.kill()
        await hears(story, "unavailable", 100)
        await private_nats.start()
        await story.truth_is_told(TRUTH_SECONDS)
        await story.load.flows(100, FLOW_SECONDS)
    await compare(story)


async def test_nats_that_freezes(story: Story, private_nats: NatsServer) -> None:
    for _ in range(2):
        await story.load.flows(100, FLOW_SECONDS)
        private_nats.freeze()
        await hears(story, "unavailable", 20)
        private_nats.thaw()
        await story.truth_is_told(TRUTH_SECONDS)
    await compare(story)


async def test_nats_that_restarts_in_order(story: Story, private_nats: NatsServer) -> None:
    for _ in range(3):
        await story.load.flows(100, FLOW_SECONDS)
        private_nats.stop()
        await private_nats.start()
        await story.truth_is_told(TRUTH_SECONDS)
    await compare(story)


async def test_frozen_gateway(story: Story) -> None:
    for gateway in story.bridge.gateways:
        await story.load.flows(100, FLOW_SECONDS)
        gateway.freeze()
        await hears(story, "client_lost", 1)
        gateway.thaw()
        await story.truth_is_told(TRUTH_SECONDS)
    await compare(story)
