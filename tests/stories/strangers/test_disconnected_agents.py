"""An agent that an administrator disconnects loses all that it has open: two agent APIs, three NATS servers."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from support.nats.cluster import Cluster, ClusterBridge, Node, bridge_on, running_cluster
from support.nats.line import Line, connect_line, line_to
from support.settings import admin_token, agent_token, bearer
from support.wait import until
from websockets.asyncio.client import connect

from protocol.errors import CloseCode

PATIENCE_SECONDS = 20


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_cluster(tmp_path / "nats") as cluster:
        yield cluster


@pytest.fixture
async def bridge(cluster: Cluster, tmp_path: Path) -> AsyncIterator[ClusterBridge]:
    async with bridge_on(cluster, tmp_path / "bridge", gateways=0, agent_apis=2, registries=2) as bridge:
        yield bridge


@contextlib.asynccontextmanager
async def on_nats(node: Node, sub: str) -> AsyncIterator[Line]:
    async with line_to(node.port) as line:
        said = await line.told(connect_line(auth_token=agent_token(sub)))
        assert [told.split()[0] for told in said] == ["INFO"]
        yield line


async def last_event(stream: httpx.Response) -> tuple[str, str]:
    """Read a stream to its end; return the name and the data of its last event."""
    last = ("", "")
    async for line in stream.aiter_lines():
        field, _, value = line.partition(": ")
        last = {"event": (value, ""), "data": (last[0], value)}.get(field, last)
    return last


async def test_everything_that_it_has_open_ends_everywhere_and_nothing_of_others(
    cluster: Cluster, bridge: ClusterBridge
) -> None:
    ann, bob = bearer(agent_token("ann")), bearer(agent_token("bob"))
    sockets = [f"{api.url.replace('http', 'ws')}/api/ws" for api in bridge.agent_apis]
    async with (
        bridge.client(agent_token("ann"), 0).stream("GET", "/api/events") as events,
        connect(sockets[1], additional_headers=ann, proxy=None) as socket,
        connect(sockets[0], additional_headers=bob, proxy=None) as neighbour,
        on_nats(cluster.nodes[0], "ann") as first,
        on_nats(cluster.nodes[2], "ann") as third,
        on_nats(cluster.nodes[2], "bob") as other,
    ):
        answer = await bridge.admin().delete("/api/agents/ann", params={"seconds": 600})
        assert answer.status_code == httpx.codes.OK, answer.text
        assert (answer.json()["sub"], answer.json()["natsConnections"]) == ("ann", 2)

        name, data = await last_event(events)
        assert (name, json.loads(data)["code"]) == ("end", "permission_denied")
        await socket.wait_closed()
        assert (socket.close_code, "administrator" in (socket.close_reason or "")) == (CloseCode.REFUSED, True)
        assert not await first.answers()
        assert not await third.answers()

        assert await other.answers()
        await (await neighbour.ping())
        for number in (0, 1):
            refused = await bridge.client(agent_token("ann"), number).get("/api/clients")
            assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")
            assert "until 20" in refused.json()["message"]
            assert (await bridge.client(agent_token("bob"), number).get("/api/clients")).status_code == 200

    assert (await bridge.admin().delete("/api/agents/ann", params={"seconds": 0})).status_code == 200
    back = bridge.client(agent_token("ann"), 1)

    async def is_back() -> bool:
        return (await back.get("/api/clients")).status_code == httpx.codes.OK

    assert await until(is_back, PATIENCE_SECONDS)


async def test_server_that_does_not_answer_is_named_and_the_others_have_ended_theirs(
    cluster: Cluster, bridge: ClusterBridge
) -> None:
    frozen = cluster.nodes[2]
    home = await cluster.leader()
    if home is frozen:
        frozen = cluster.nodes[1]
    awake = next(node for node in cluster.nodes if node is not frozen)
    async with on_nats(awake, "ann") as ann:
        frozen.freeze()
        try:

            async def told() -> str:
                answer = await bridge.admin().delete("/api/agents/ann", params={"seconds": 600})
                return str(answer.json().get("message", "")) if answer.status_code == 503 else ""

            async def ended() -> bool:
                return bool(await told()) or not await ann.answers()

            assert await until(ended, PATIENCE_SECONDS)
        finally:
            frozen.thaw()

        async def done() -> bool:
            return (await bridge.admin().delete("/api/agents/ann", params={"seconds": 600})).status_code == 200

        assert await until(done, 2 * PATIENCE_SECONDS)
        assert not await ann.answers()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/agents/ann?seconds=-1", 400),
        ("/api/agents/ann?seconds=86401", 400),
        ("/api/agents/ann?seconds=x", 400),
        ("/api/agents/ann?second=1", 400),
        ("/api/agents/ann?seconds=1&seconds=2", 400),
        (f"/api/agents/{'a' * 257}", 400),
        ("/api/agents/a%2Fb%20%C3%A4?seconds=0", 200),
    ],
)
async def test_route_takes_any_sub_and_refuses_what_makes_no_sense(
    bridge: ClusterBridge, path: str, status: int
) -> None:
    answer = await bridge.admin().delete(path)
    assert answer.status_code == status, answer.text
    assert status == 400 or answer.json()["sub"] == "a/b ä"
    assert (await bridge.client(agent_token("mallory")).delete(path)).status_code == 403
    assert (await bridge.client(None).delete(path)).status_code == 401
    assert (await bridge.client(admin_token()).get(path)).status_code == 405
