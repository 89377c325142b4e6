"""A NATS cluster of three servers, with three replicas of everything, that loses each kind of server under load."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from support.load.ledger import SUCCESS
from support.load.story import Story, told
from support.nats.cluster import Cluster, Node, bridge_on, running_cluster
from support.nats.events import data_of, reading
from support.nats.stores import EVENTS_STREAM
from support.played.app import App
from support.settings import agent_token
from support.wait import until

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
        told(bridge, cluster.agent_settings(), cluster.observer()) as story,
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


# A reconnect to the frozen server leaves its socket behind, inside nats-py; the test's own observer makes such ones.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function StreamWriter:pytest.PytestUnraisableExceptionWarning"
)
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


async def test_readers_of_events_miss_nothing_when_the_leader_of_the_stream_is_lost(
    tmp_path: Path, cluster: Cluster
) -> None:
    async with (
        bridge_on(cluster, tmp_path / "bridge", gateways=1, agent_apis=2, registries=1) as bridge,
        bridge.app() as app,
    ):
        await cluster.whole()
        one, other = (bridge.client(agent_token(), number) for number in range(2))
        async with reading(one, clients="false") as stays:
            async with reading(one, clients="false") as leaves:
                await tell(app, range(20))
                assert data_of(await leaves.take(20)) == list(range(20))
            victim = await cluster.leader(EVENTS_STREAM)
            victim.kill()
            await tell(app, range(20, 40))
            await until(partial(lets_readers_in, other), 10)
            async with reading(other, leaves.last_id, clients="false") as returns:
                assert data_of(await returns.take(20, 10)) == list(range(20, 40))
                await victim.start()
                await cluster.whole()
                await tell(app, range(40, 60))
                assert data_of(await returns.take(20, 10)) == list(range(40, 60))
            assert data_of(await stays.take(60, 10)) == list(range(60))


async def lets_readers_in(http: httpx.AsyncClient) -> bool:
    """Tell whether readers may come; while the stream has no leader, they are asked to try again."""
    async with http.stream("GET", "/api/events", timeout=None) as response:
        assert response.status_code in (httpx.codes.OK, httpx.codes.SERVICE_UNAVAILABLE)
        return response.status_code == httpx.codes.OK


async def tell(app: App, numbers: range) -> None:
    """Have an application tell of an event for each number, each until it is stored: once, whatever is repeated."""
    for number in numbers:
        await store(app, f"event-{number}", number)


async def store(app: App, ident: str, number: int) -> None:
    answers = 0
    while not app.all_received(type="ack", id=ident):
        await app.send({"type": "event", "event": "e", "data": number, "id": ident})
        answers += 1
        await until(partial(answered, app, ident, answers), 10)


def answered(app: App, ident: str, times: int) -> bool:
    return len(app.all_received(id=ident)) >= times
