"""A NATS cluster of three servers, with three replicas of everything, that loses each kind of server under load."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.cluster import Cluster, Node, bridge_on, running_cluster
from support.ledger import SUCCESS
from support.story import Story, told

TRUTH_SECONDS = 10
FROZEN_TRUTH_SECONDS = 20  # followers of a leader that is silent, not gone, wait 4 to 9 s before they elect another
LOST, UNAVAILABLE = "client_lost", "unavailable"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Three nodes."""
    async with running_cluster(tmp_path / "cluster") as cluster:
        yield cluster


@pytest.fixture
async def story(tmp_path: Path, cluster: Cluster) -> AsyncIterator[Story]:
    """Three gateways, two agent APIs and two registries on the cluster, with applications and callers."""
    async with (
        bridge_on(cluster, tmp_path / "bridge", gateways=3, agent_apis=2, registries=2) as bridge,
        told(bridge, cluster.settings("agent_default"), cluster.observer()) as story,
    ):
        await cluster.whole()
        yield story


async def lose(story: Story, cluster: Cluster, victim: Node) -> None:
    """Kill a node under load, have everything work on the other two, and take it back."""
    held = await story.hold(story.fleet.clients)
    story.load.start(story.tasks)
    await story.load.flows()
    victim.kill()
    await story.load.flows()
    await story.truth_is_told(TRUTH_SECONDS)
    await story.fleet.join(1, story.tasks)
    await story.truth_is_told(TRUTH_SECONDS)
    await victim.start()
    await cluster.whole()
    await story.truth_is_told(TRUTH_SECONDS)
    await story.load.flows()
    assert any(command.waits for command in held), "a node took every command with it"
    await story.end(SUCCESS, LOST, UNAVAILABLE)


async def test_loses_the_leader_of_its_streams(story: Story, cluster: Cluster) -> None:
    await lose(story, cluster, await cluster.leader())


async def test_loses_a_follower(story: Story, cluster: Cluster) -> None:
    leader = await cluster.leader()
    await lose(story, cluster, next(node for node in cluster.nodes if node is not leader))


@pytest.mark.parametrize("module", ["gateway", "agent_api"])
async def test_loses_the_server_that_a_process_is_connected_to(story: Story, cluster: Cluster, module: str) -> None:
    victims = [node for node in cluster.nodes if module in await node.connected()]
    await lose(story, cluster, victims[0])


async def test_leader_freezes_and_comes_back_with_old_news(story: Story, cluster: Cluster) -> None:
    victim = await cluster.leader()
    story.load.start(story.tasks)
    await story.load.flows()
    victim.freeze()
    await story.load.flows()
    await story.fleet.join(1, story.tasks)
    await story.truth_is_told(FROZEN_TRUTH_SECONDS)
    victim.thaw()
    await cluster.whole()
    await story.truth_is_told(TRUTH_SECONDS)
    await story.end(SUCCESS, LOST, UNAVAILABLE)


async def test_commands_flow_while_one_server_of_three_is_left(story: Story, cluster: Cluster) -> None:
    story.load.start(story.tasks)
    await story.load.flows()
    for node in cluster.nodes[1:]:
        node.kill()
    await story.load.flows()
    for node in cluster.nodes[1:]:
        await node.start()
    await cluster.whole()
    await story.fleet.join(1, story.tasks)
    await story.truth_is_told(TRUTH_SECONDS)
    await story.end(SUCCESS, LOST, UNAVAILABLE)
