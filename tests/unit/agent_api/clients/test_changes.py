"""What an agent is told of clients: a snapshot and then what changes, whatever changes in whatever order."""

import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.nats.clients_bucket import record

from agent_api.clients import changes
from agent_api.clients import visible as visible_module
from agent_api.clients.changes import MAX_FRAME_BYTES, ClientNews
from agent_api.clients.visible import MAX_LOOKS, scope_of
from agent_api.clients.watch import ClientWatch, ClientWatches
from protocol.access import ADMIN, AGENT, ClientView, Principal, may
from protocol.discovery import Client
from protocol.records import EMPTY_CAPABILITIES
from protocol.runtime.clients.replica import ReplicaEntry

ANY = Principal("agent", AGENT, "default", float("inf"))
OF_ANN = Principal("agent", AGENT, "default", float("inf"), users=frozenset({"ann"}))


def client(client_id: str, user: str = "ann", **fields: Any) -> Client:
    return Client(record(client_id, principal=user, **fields), EMPTY_CAPABILITIES)


class World:
    """The clients of a tenant, and whoever watches them."""

    def __init__(self) -> None:
        self.client_watches = ClientWatches()
        self.clients: dict[str, Client] = {}

    def put(self, *clients: Client) -> None:
        for each in clients:
            self.clients[each.record.client_id] = each
            self.client_watches.observe(f"default.{each.record.client_id}", None, ReplicaEntry(1, each))

    def remove(self, *client_ids: str) -> None:
        for client_id in client_ids:
            if self.clients.pop(client_id, None):
                self.client_watches.observe(f"default.{client_id}", ReplicaEntry(1), None)


class Agent:
    """Puts a picture together from news."""

    def __init__(self, world: World, principal: Principal = ANY) -> None:
        self.world = world
        self.watch: ClientWatch = world.client_watches.open(principal, world.clients)
        self.clients: dict[str, Any] = {}
        self.news: list[ClientNews] = []

    def look(self) -> "Agent":
        """Have everything told."""
        while not self.watch.changes.complete:
            self.step()
        return self

    def step(self) -> None:
        news = self.watch.changes.step(self.world.clients)
        if news is not None:
            self.take(news)

    def take(self, news: ClientNews) -> None:
        self.news.append(news)
        assert news.revision == len(self.news)
        for raw in news.added:
            added = msgspec.json.decode(raw)
            assert added["clientId"] not in self.clients
            self.clients[added["clientId"]] = added
        for raw in news.updated:
            updated = msgspec.json.decode(raw)
            assert updated["clientId"] in self.clients
            self.clients[updated["clientId"]] = updated
        for client_id in news.removed:
            del self.clients[client_id]

    def renew(self, principal: Principal) -> None:
        self.world.client_watches.change_principal(self.watch, principal, self.world.clients)


@pytest.fixture
def world() -> World:
    return World()


def crowd(count: int, user: str = "ann", **fields: Any) -> list[Client]:
    return [client(f"c{number}", user, **fields) for number in range(count)]


def test_nobody_there_is_a_complete_picture(world: World) -> None:
    assert Agent(world).look().news == [ClientNews(1, True, [], [], [])]


def test_large_snapshot_comes_in_parts_of_which_the_last_is_complete(world: World) -> None:
    world.put(*crowd(3 * MAX_LOOKS))
    agent = Agent(world).look()
    assert agent.clients.keys() == world.clients.keys()
    assert [frame.complete for frame in agent.news] == [*[False] * (len(agent.news) - 1), True]
    assert max(sum(len(memoryview(raw)) for raw in frame.added) for frame in agent.news) < 2 * MAX_FRAME_BYTES


def test_burst_of_changes_of_one_client_is_told_once(world: World) -> None:
    world.put(client("c1"))
    agent = Agent(world).look()
    for revision in range(2, 9):
        world.put(client("c1", revision=revision))
    agent.look()
    assert [len(frame.updated) for frame in agent.news] == [0, 1]
    assert agent.clients["c1"]["revision"] == 8


def test_client_that_comes_and_goes_between_two_looks_is_not_told(world: World) -> None:
    agent = Agent(world).look()
    world.put(client("c1"))
    world.remove("c1")
    assert len(agent.look().news) == 1


def test_change_during_a_long_snapshot_is_told_once(world: World) -> None:
    world.put(*crowd(3 * MAX_LOOKS))
    agent = Agent(world)
    while not agent.news:
        agent.step()
    world.put(*crowd(3 * MAX_LOOKS, revision=2))
    world.remove("c0", f"c{3 * MAX_LOOKS - 1}")
    agent.look()
    assert agent.clients.keys() == world.clients.keys()
    assert all(each["revision"] == 2 for each in agent.clients.values())
    assert sum(len(frame.added) for frame in agent.news) < 3 * MAX_LOOKS


def test_client_that_another_user_takes_over_is_gone_for_an_agent_limited_to_the_first(world: World) -> None:
    world.put(client("c1"), client("c2", "bob"))
    agent = Agent(world, OF_ANN).look()
    assert agent.clients.keys() == {"c1"}
    world.put(client("c1", "bob"), client("c2", "ann"))
    agent.look()
    assert agent.clients.keys() == {"c2"}
    assert (agent.news[-1].removed, len(agent.news[-1].added)) == (["c1"], 1)


def test_renewed_limits_take_effect_at_once(world: World) -> None:
    world.put(client("c1"), client("c2", "bob"))
    agent = Agent(world).look()
    agent.renew(OF_ANN)
    assert agent.look().clients.keys() == {"c1"}
    assert (agent.news[-1].added, agent.news[-1].updated, agent.news[-1].removed) == ([], [], ["c2"])


def test_renewal_with_the_same_limits_costs_nothing(world: World) -> None:
    world.put(*crowd(5))
    agent = Agent(world, OF_ANN).look()
    agent.watch.news.clear()
    agent.renew(msgspec.structs.replace(OF_ANN, expires_at=9.0, permissions=frozenset("x")))
    assert not agent.watch.news.is_set()
    assert agent.watch.changes.complete


@pytest.mark.parametrize("count", [1, MAX_LOOKS + 1, 3 * MAX_LOOKS + 500])
def test_however_many_hidden_clients_there_are_and_change_nothing_tells(world: World, count: int) -> None:
    world.put(*crowd(count, "bob"))
    agent = Agent(world, OF_ANN).look()
    agent.watch.news.clear()
    world.put(*crowd(count, "bob", revision=2))
    assert not agent.watch.news.is_set()
    agent.look()
    agent.renew(msgspec.structs.replace(OF_ANN, users=frozenset({"ann", "zoe"})))
    agent.look()
    assert agent.news == [ClientNews(1, True, [], [], [])]
    world.put(client("mine"))
    agent.look()
    assert [(frame.revision, frame.complete) for frame in agent.news] == [(1, True), (2, True)]


def test_agents_with_the_same_limits_share_what_they_see(world: World) -> None:
    """What a picture costs each agent that is up to date does not grow with the number of clients."""
    world.put(*crowd(10_000))
    first = Agent(world).look()
    sights = []
    tracemalloc.start()
    try:
        for _ in range(10):
            watch = world.client_watches.open(ANY, world.clients)
            while not watch.changes.complete:
                watch.changes.step(world.clients)
            sights.append(watch)
        assert tracemalloc.get_traced_memory()[0] < 10 * 10_000
    finally:
        tracemalloc.stop()
    assert len(first.clients) == 10_000


histories = st.lists(
    st.tuples(
        st.sampled_from(["c1", "c2", "c3"]), st.sampled_from(["ann", "bob", None]), st.integers(0, 3), st.booleans()
    )
)


@pytest.mark.parametrize(("looks", "frame_bytes"), [(1000, 65536), (1, 1)])
@given(histories, st.booleans())
def test_complete_picture_is_what_the_agent_may_see(
    looks: int,
    frame_bytes: int,
    steps: list[tuple[str, str | None, int, bool]],
    limited: bool,
) -> None:
    world, principal = World(), OF_ANN if limited else ANY
    world.put(client("c2"), client("c3", "bob"))
    with pytest.MonkeyPatch.context() as patch:
        for module in (visible_module, changes):
            patch.setattr(module, "MAX_LOOKS", looks)
        patch.setattr(changes, "MAX_FRAME_BYTES", frame_bytes)
        agent, stayer = Agent(world, principal), Agent(world, ANY)
        for revision, (client_id, user, steps_between, renews) in enumerate(steps):
            if user is None:
                world.remove(client_id)
            else:
                world.put(client(client_id, user, revision=revision))
            if renews:
                principal = ANY if principal is OF_ANN else OF_ANN
                agent.renew(principal)
            for _ in range(steps_between):
                agent.step()
        agent.look()
        stayer.look()
    everything = {key: msgspec.json.decode(msgspec.json.encode(each.record)) for key, each in world.clients.items()}
    visible = {key: each for key, each in everything.items() if principal is ANY or each["principal"] == "ann"}
    assert (agent.clients, stayer.clients) == (visible, everything)
    assert agent.news[-1].complete


limits = st.none() | st.frozensets(st.sampled_from(["ann", "bob", "todo", "c1", ""]), max_size=3)
principals = st.builds(
    Principal,
    sub=st.sampled_from(["a", "b"]),
    role=st.sampled_from([AGENT, ADMIN]),
    tenant=st.sampled_from(["default", "acme"]),
    expires_at=st.floats(0, 9),
    permissions=st.frozensets(st.sampled_from(["*", "x"])),
    users=limits,
    apps=limits,
    clients=limits,
)
views = st.builds(
    ClientView,
    tenant=st.sampled_from(["default", "acme"]),
    client_id=st.sampled_from(["c1", "c2"]),
    user=st.sampled_from(["ann", "bob"]),
    app=st.sampled_from(["todo", ""]),
)


@given(principals, principals, views)
def test_who_shares_a_scene_may_see_the_same_clients(one: Principal, two: Principal, view: ClientView) -> None:
    twin = msgspec.structs.replace(two, **scope_of(one)._asdict())
    assert may(one, view) == may(twin, view)


def test_news_of_another_tenant_wakes_nobody_and_a_record_is_encoded_once(world: World) -> None:
    one, two = Agent(world).look(), Agent(world).look()
    for each in (one, two):
        each.watch.news.clear()
    world.client_watches.observe("acme.c1", None, ReplicaEntry(1, client("c1")))
    assert not one.watch.news.is_set()
    world.put(client("c1"))
    assert one.watch.news.is_set()
    assert two.watch.news.is_set()
    assert one.look().news[-1].added[0] is two.look().news[-1].added[0]


def test_what_nobody_watches_is_forgotten(world: World) -> None:
    world.put(client("c1"))
    agents = [Agent(world).look(), Agent(world, OF_ANN).look()]
    agents[1].renew(ANY)
    for agent in agents:
        world.client_watches.close(agent.watch)
    last = Agent(world)
    world.client_watches.written.of(client("c1"))
    world.client_watches.close(last.watch)
    left, nothing = vars(world.client_watches), vars(ClientWatches())
    assert vars(left.pop("written")) == vars(nothing.pop("written"))
    assert left | {"overview_turns": None} == nothing | {"overview_turns": None}
    world.put(client("c2"))
