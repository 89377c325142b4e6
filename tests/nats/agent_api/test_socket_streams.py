"""What agents are told on their WebSocket: progress, events, changes of clients, and what clients offer."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from support.nats.events import change, make_stream, tell
from support.played.agent_api import RunningApi, World, function, http_client, listed, running_agent_api, world_at
from support.played.agent_socket import AgentSocket, Frame, agent_socket, narrow_socket
from support.settings import agent_token
from support.wait import until
from websockets.exceptions import ConnectionClosed

from agent_api.events import cursor, hub
from agent_api.socket import live, streams

CLIENTS = 1000


@pytest.fixture
async def world(nats_url: str) -> AsyncIterator[World]:
    async with world_at(nats_url) as surroundings:
        await make_stream(surroundings.nats)
        yield surroundings


@pytest.fixture
async def api(world: World, nats_url: str) -> AsyncIterator[RunningApi]:
    async with running_agent_api(nats_url) as running, http_client(running) as http:
        await listed(http)
        yield running


async def subscribed(agent: AgentSocket, ident: str = "s", **fields: Any) -> Frame:
    """Subscribe and return the acknowledgement."""
    await agent.send({"type": "subscribe", "id": ident, **fields})
    return await agent.received(type="ack", id=ident)


class Picture:
    """What an agent knows of clients by the frames of a watch."""

    def __init__(self, agent: AgentSocket, ident: str = "w") -> None:
        self._agent = agent
        self._ident = ident
        self._read = 0
        self.clients: dict[str, Frame] = {}
        self.frames: list[Frame] = []
        self.complete = False

    async def watch(self) -> "Picture":
        """Begin, and wait until it is complete."""
        await self._agent.send({"type": "capabilities", "id": self._ident})
        await until(lambda: self.look().complete, 20)
        return self

    def look(self) -> "Picture":
        """Read the frames that have come."""
        for frame in self._agent.all_received(type="capabilities", id=self._ident)[self._read :]:
            self._read += 1
            self.frames.append(frame)
            self.complete = frame["complete"]
            self.clients |= {record["clientId"]: record for record in frame["added"] + frame["updated"]}
            for client_id in frame["removed"]:
                del self.clients[client_id]
        return self


# --- progress ---


async def test_progress_comes_in_order_before_the_response(world: World, api: RunningApi, agent: AgentSocket) -> None:
    async def work(message: dict[str, Any]) -> str:
        subject = world.headers[-1]["Agentbridge-Progress"]
        for seq in (1, 2, 3):
            told = {"requestId": message["requestId"], "seq": seq, "progress": seq, "total": 3, "data": {"seq": seq}}
            await world.nats.publish(subject, json.dumps(told).encode())
        return "done"

    await world.hold("c1", work)
    ident = await agent.command("c1", "f")
    await agent.answer(ident)
    assert [frame["type"] for frame in agent.frames] == ["progress"] * 3 + ["response"]
    assert agent.frames[1] == {
        "type": "progress",
        "id": ident,
        "clientId": "c1",
        "seq": 2,
        "progress": 2.0,
        "total": 3.0,
        "data": {"seq": 2},
    }


async def test_progress_that_is_not_wanted_is_not_asked_for(world: World, agent: AgentSocket) -> None:
    await world.hold("c1", lambda message: None)
    await agent.call("c1", "f", progress=False)
    assert "Agentbridge-Progress" not in world.headers[0]


async def test_several_clients_answer_in_one_response(world: World, agent: AgentSocket) -> None:
    for client_id in ("c1", "c2"):
        await world.hold(client_id, lambda message: "yes")
    response = await agent.call(None, "f", clientIds=["c1", "c2", "c3"])
    assert {client_id: answer["status"] for client_id, answer in response["results"].items()} == {
        "c1": "success",
        "c2": "success",
        "c3": "error",
    }
    assert (response["status"], response["complete"]) == ("success", True)


# --- events ---


async def test_events_and_changes_are_told_by_name(world: World, agent: AgentSocket) -> None:
    position = (await subscribed(agent, events=["todo.*"], clients=True))["position"]
    await tell(world.nats, "other")
    await tell(world.nats, "todo.added", {"title": "milk"})
    await change(world.nats, "disconnected")
    event, client = await agent.received(type="event"), await agent.received(type="client")
    assert (event["id"], event["data"]["event"], event["data"]["data"]) == ("s", "todo.added", {"title": "milk"})
    assert (client["id"], client["data"]["change"]) == ("s", "disconnected")
    epoch = position.partition("-")[0]
    assert [frame["position"] for frame in (event, client)] == [f"{epoch}-2", f"{epoch}-3"]
    assert len(agent.frames) == 3


async def test_subscription_resumed_from_a_position_misses_nothing(world: World, api: RunningApi) -> None:
    async with agent_socket(api.url) as first:
        await subscribed(first, events=["*"])
        await tell(world.nats, data=1)
        position = (await first.received(type="event"))["position"]
    for number in range(2, 500):
        await tell(world.nats, data=number)
    async with agent_socket(api.url) as second:
        await subscribed(second, events=["*"], since=position)
        await until(lambda: len(second.all_received(type="event")) == 498)
        assert [frame["data"]["data"] for frame in second.all_received(type="event")] == list(range(2, 500))


async def test_unknown_position_is_a_gap(agent: AgentSocket) -> None:
    await subscribed(agent, events=["*"], since="no position")
    gap = await agent.received(type="gap", id="s")
    assert gap["reason"] == "unknown"


async def test_unsubscribed_is_told_no_more(world: World, agent: AgentSocket) -> None:
    await subscribed(agent, events=["*"])
    await subscribed(agent, "t", events=["*"])
    await agent.send({"type": "unsubscribe", "id": "s"})
    await until(lambda: len(agent.all_received(type="ack", id="s")) == 2)
    await tell(world.nats)
    await agent.received(type="event", id="t")
    assert not agent.all_received(type="event", id="s")
    await subscribed(agent, events=["*"])


async def test_agent_hears_of_its_tenants_clients_within_its_limits_alone(world: World, api: RunningApi) -> None:
    await make_stream(world.nats, "acme")
    limited = agent_token(limits={"users": ["ann"]})
    async with agent_socket(api.url, limited) as agent, agent_socket(api.url, agent_token(tenant="acme")) as stranger:
        for each in (agent, stranger):
            await subscribed(each, events=["*"], clients=True)
        await tell(world.nats, user="bob", client_id="c2")
        await change(world.nats, user="bob", client_id="c2")
        await tell(world.nats, user="ann")
        await tell(world.nats, tenant="acme", user="zoe", client_id="c3")
        assert (await agent.received(type="event"))["data"]["user"] == "ann"
        assert (await stranger.received(type="event"))["data"]["user"] == "zoe"
        assert (len(agent.frames), len(stranger.frames)) == (2, 2)


async def test_renewed_limits_hold_for_what_runs(world: World, api: RunningApi) -> None:
    await world.put("c1", principal="ann")
    await world.put("c2", principal="bob")
    async with agent_socket(api.url) as agent:
        picture = await Picture(agent).watch()
        await until(lambda: picture.look().clients.keys() == {"c1", "c2"})
        await subscribed(agent, events=["*"])
        await agent.send({"type": "auth", "id": "a", "token": agent_token(limits={"users": ["ann"]})})
        await agent.received(type="ack", id="a")
        await until(lambda: picture.look().clients.keys() == {"c1"})
        await tell(world.nats, user="bob", client_id="c2")
        await tell(world.nats, user="ann")
        assert (await agent.received(type="event"))["data"]["user"] == "ann"


async def test_where_nothing_is_for_an_agent_it_learns_how_far_it_is(
    world: World, agent: AgentSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "POSITION_SECONDS", 0.05)
    await subscribed(agent, events=["mine"])
    await tell(world.nats, "other")
    await until(lambda: any(frame["position"].endswith("-1") for frame in agent.all_received(type="position")))


class Outrun(NamedTuple):
    """An agent with a subscription `s` that finds no room to write, and the 400 events of which memory holds few."""

    agent: AgentSocket
    room: asyncio.Event
    position: str  # before the events


@pytest.fixture
async def outrun(world: World, nats_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Outrun]:
    """Give an agent that memory has outrun, until the test sets `room`."""
    room = asyncio.Event()

    async def no_room(_: streams.AgentStreams) -> None:
        await room.wait()

    monkeypatch.setattr(streams.AgentStreams, "_room", no_room)
    monkeypatch.setattr(hub, "MAX_BYTES", 5000)
    async with running_agent_api(nats_url) as api, agent_socket(api.url) as agent:
        position = (await subscribed(agent, events=["*"]))["position"]
        for number in range(400):
            await tell(world.nats, data=number)
        await world.hold("c1", lambda message: "not dropped")
        assert (await agent.call("c1", "f"))["result"] == "not dropped"
        yield Outrun(agent, room, position)


async def has_got_all(agent: AgentSocket) -> None:
    await until(lambda: len(agent.all_received(type="event")) >= 400)
    assert [event["data"]["data"] for event in agent.all_received(type="event")] == list(range(400))


async def test_subscription_that_memory_has_outrun_gets_everything(outrun: Outrun) -> None:
    outrun.room.set()
    await has_got_all(outrun.agent)
    assert outrun.agent.all_received(type="error") == []


async def test_subscription_that_stays_too_slow_is_told_and_may_resume(
    outrun: Outrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor, "MAX_BEHIND_SECONDS", 0.0)
    agent, room, position = outrun
    room.set()
    ended = await agent.received(type="error", id="s")
    assert (ended["code"], ended["retryable"]) == ("overloaded", True)

    events = agent.all_received(type="event")
    await subscribed(agent, "again", events=["*"], since=events[-1]["position"] if events else position)
    await has_got_all(agent)


async def test_several_subscriptions_never_cost_a_slow_agent_its_socket(world: World, nats_url: str) -> None:
    """An agent that reads nothing until its subscriptions wait for it, each with more than the bound allows for all."""
    await world.hold("c1", lambda message: "not cut off")
    async with running_agent_api(nats_url, send_buffer_bytes=100_000) as api, narrow_socket(api.url) as socket:
        for number in range(8):
            await socket.send(json.dumps({"type": "subscribe", "id": f"s{number}", "events": ["*"]}))
        for _ in range(8):
            assert json.loads(await socket.recv())["type"] == "ack"
        for number in range(60):
            await tell(world.nats, data=[number, "x" * 30_000])
        await until(lambda: has_slow_reader(api))
        await socket.send(json.dumps({"type": "command", "id": "c", "clientId": "c1", "command": {"target": "f"}}))
        told = [json.loads(await socket.recv()) for _ in range(8 * 60 + 1)]
    assert [frame["result"] for frame in told if frame["type"] == "response"] == ["not cut off"]
    for number in range(8):
        mine = [frame["data"]["data"][0] for frame in told if frame["id"] == f"s{number}"]
        assert mine == list(range(60))


def has_slow_reader(api: RunningApi) -> bool:
    """Tell whether writing waits for an agent; nothing of that can be seen from outside."""
    return any(each._socket.paused for each in api.sockets._live)


@pytest.fixture
async def past(world: World, nats_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[RunningApi, str]]:
    """An agent API that remembers little, and the position before sixty large events."""
    monkeypatch.setattr(hub, "MAX_BYTES", 5000)
    async with running_agent_api(nats_url) as api:
        async with agent_socket(api.url) as agent:
            since = (await subscribed(agent, events=["*"]))["position"]
        for number in range(60):
            await tell(world.nats, data=[number, "x" * 100_000])
        await until(lambda: not api.sockets.upgrades)
        yield api, since


async def test_past_that_is_written_and_not_read_leaves_others_theirs(past: tuple[RunningApi, str]) -> None:
    api, since = past
    async with narrow_socket(api.url) as socket:
        await socket.send(json.dumps({"type": "subscribe", "id": "s", "events": ["*"], "since": since}))
        await until(lambda: has_slow_reader(api))
        await until(lambda: not api.hub.history.shares.held)
        told = [json.loads(await socket.recv()) for _ in range(61)]
    assert [frame["data"]["data"][0] for frame in told[1:]] == list(range(60))


async def test_past_that_finds_no_room_for_long_is_given_up_and_may_be_resumed(
    past: tuple[RunningApi, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HELD_SECONDS", 0.1)
    api, since = past
    async with agent_socket(api.url) as agent:
        await until(lambda: api.sockets.upgrades)
        (mine,) = api.sockets._live
        async with mine._streams._turn:
            await subscribed(agent, events=["*"], since=since)
            ended = await agent.received(type="error", id="s")
        assert (ended["code"], ended["retryable"]) == ("overloaded", True)
        await until(lambda: not api.hub.history.shares.held)
        monkeypatch.undo()
        await subscribed(agent, "again", events=["*"], since=since)
        await until(lambda: len(agent.all_received(type="event", id="again")) == 60)


async def test_agent_that_sends_but_never_reads_is_cut_off(
    past: tuple[RunningApi, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "UNREAD_SECONDS", 0.5)
    api, since = past
    async with narrow_socket(api.url) as socket:
        await socket.send(json.dumps({"type": "subscribe", "id": "s", "events": ["*"], "since": since}))
        await until(lambda: has_slow_reader(api))
        async with asyncio.timeout(10):
            while api.sockets.upgrades:
                with contextlib.suppress(ConnectionClosed):
                    await socket.send('{"type":"ping"}')
                await asyncio.sleep(0.05)


async def test_shut_down_ends_subscriptions_with_the_socket(world: World, nats_url: str) -> None:
    async with running_agent_api(nats_url) as api, agent_socket(api.url) as agent:
        await subscribed(agent, events=["*"])
        await api.drain()
        assert await agent.closed() == 1012


# --- capabilities ---


async def test_snapshot_is_followed_by_changes(world: World, agent: AgentSocket) -> None:
    await world.put("c1", [function("f")])
    picture = await Picture(agent).watch()
    await until(lambda: picture.look().clients.keys() == {"c1"})
    assert picture.clients["c1"]["capabilities"] == [function("f")]

    await world.put("c2", [function("g")])
    await world.put("c1", [function("h")], revision=2)
    await until(lambda: picture.look().clients.keys() == {"c1", "c2"})
    await until(lambda: picture.look().clients["c1"]["capabilities"] == [function("h")])
    await world.remove("c1")
    await until(lambda: picture.look().clients.keys() == {"c2"})

    revisions = [frame["revision"] for frame in picture.frames]
    assert revisions == sorted(revisions)
    assert picture.complete


async def test_burst_of_changes_makes_few_frames(world: World, agent: AgentSocket) -> None:
    picture = await Picture(agent).watch()
    for start in range(0, CLIENTS, 100):
        await asyncio.gather(*(world.put(f"c{start + number}", [function("f")]) for number in range(100)))
    await until(lambda: len(picture.look().clients) == CLIENTS and picture.complete, 20)
    assert len(picture.frames) < CLIENTS / 5
    await agent.send({"type": "unsubscribe", "id": "w"})
    again = await Picture(agent, "again").watch()
    assert again.clients == picture.clients


async def test_clients_beyond_an_agents_limits_do_not_exist(world: World, api: RunningApi) -> None:
    await world.put("c1", principal="ann")
    await world.put("c2", principal="bob")
    await world.put("c3", tenant="acme")
    token = agent_token(limits={"users": ["ann"]})
    async with agent_socket(api.url, token) as agent:
        picture = await Picture(agent).watch()
        await until(lambda: picture.look().clients.keys() == {"c1"})
        await world.put("c1", principal="bob", revision=2)
        await world.put("c2", principal="ann", revision=2)
        await until(lambda: picture.look().clients.keys() == {"c2"})
        assert "bob" not in json.dumps(agent.frames)
        assert "c3" not in json.dumps(agent.frames)


async def test_before_the_first_list_capabilities_are_unavailable(nats_url: str) -> None:
    async with running_agent_api(nats_url) as api, agent_socket(api.url) as agent:
        await agent.send({"type": "capabilities", "id": "w"})
        refused = await agent.received(type="error", id="w")
        assert (refused["code"], refused["retryable"]) == ("unavailable", True)
