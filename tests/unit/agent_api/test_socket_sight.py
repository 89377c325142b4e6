"""What an agent is told of clients: a snapshot and then what changes, whatever changes in whatever order."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from support.kv import record

from agent_api.socket.frames import CapabilitiesFrame
from agent_api.socket.outlook import Outlook
from agent_api.socket.sight import MAX_FRAME_BYTES, MAX_LOOKS, Sight
from protocol.access import AGENT, Principal
from protocol.discovery import Client
from protocol.records import EMPTY_CAPABILITIES
from protocol.runtime.replica import Entry

ANY = Principal("agent", AGENT, "default", float("inf"))
OF_ANN = Principal("agent", AGENT, "default", float("inf"), users=frozenset({"ann"}))


def client(client_id: str, user: str = "ann", **fields: Any) -> Client:
    return Client(record(client_id, principal=user, **fields), EMPTY_CAPABILITIES)


def encoded(client: Client) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode([client.record.client_id, client.record.user, client.record.revision]))


class Agent:
    """Puts a picture together from frames."""

    def __init__(self, principal: Principal = ANY) -> None:
        self.sight = Sight("s", principal, encoded)
        self.clients: dict[str, list[Any]] = {}
        self.frames: list[CapabilitiesFrame] = []

    def look(self, clients: dict[str, Client], revision: int = 1) -> None:
        while not self.sight.complete:
            frame = self.sight.step(clients, revision)
            if frame is not None:
                self.take(frame)

    def take(self, frame: CapabilitiesFrame) -> None:
        self.frames.append(frame)
        for raw in frame.added:
            added = msgspec.json.decode(raw)
            assert added[0] not in self.clients
            self.clients[added[0]] = added
        for raw in frame.updated:
            updated = msgspec.json.decode(raw)
            assert updated[0] in self.clients
            self.clients[updated[0]] = updated
        for client_id in frame.removed:
            del self.clients[client_id]


def test_nobody_there_is_a_complete_picture() -> None:
    agent = Agent()
    agent.look({}, revision=5)
    assert agent.frames == [CapabilitiesFrame("s", 5, True, [], [], [])]


def test_large_snapshot_comes_in_parts_of_which_the_last_is_complete() -> None:
    agent = Agent()
    clients = {f"c{number}": client(f"c{number}", "x" * 50) for number in range(3 * MAX_LOOKS)}
    agent.sight.look_at(clients)
    agent.look(clients)
    assert agent.clients.keys() == clients.keys()
    assert [frame.complete for frame in agent.frames] == [*[False] * (len(agent.frames) - 1), True]
    assert max(sum(len(memoryview(raw)) for raw in frame.added) for frame in agent.frames) < 2 * MAX_FRAME_BYTES


def test_burst_of_changes_of_one_client_is_told_once() -> None:
    agent = Agent()
    clients = {"c1": client("c1")}
    agent.sight.look_at(clients)
    agent.look(clients)
    for revision in range(2, 9):
        clients["c1"] = client("c1", revision=revision)
        agent.sight.look_at(["c1"])
    agent.look(clients, 8)
    assert len(agent.frames) == 2
    assert (agent.frames[1].revision, agent.clients["c1"][2]) == (8, 8)


def test_client_that_comes_and_goes_between_two_looks_is_not_told() -> None:
    agent = Agent()
    agent.look({})
    agent.sight.look_at(["c1"])
    agent.look({})
    assert len(agent.frames) == 1


def test_client_that_another_user_takes_over_is_gone_for_an_agent_limited_to_the_first() -> None:
    agent = Agent(OF_ANN)
    clients = {"c1": client("c1"), "c2": client("c2", "bob")}
    agent.sight.look_at(clients)
    agent.look(clients)
    assert agent.clients.keys() == {"c1"}
    clients |= {"c1": client("c1", "bob"), "c2": client("c2", "ann")}
    agent.sight.look_at(clients)
    agent.look(clients)
    assert agent.clients.keys() == {"c2"}
    assert (agent.frames[-1].removed, len(agent.frames[-1].added)) == (["c1"], 1)


def test_renewed_limits_take_effect_at_once() -> None:
    agent = Agent()
    clients = {"c1": client("c1"), "c2": client("c2", "bob")}
    agent.sight.look_at(clients)
    agent.look(clients)
    agent.sight.change_principal(OF_ANN, clients)
    agent.look(clients)
    assert agent.clients.keys() == {"c1"}


def test_hidden_clients_cost_no_frame() -> None:
    agent = Agent(OF_ANN)
    agent.look({})
    clients = {"c2": client("c2", "bob")}
    agent.sight.look_at(clients)
    agent.look(clients)
    assert len(agent.frames) == 1


changes = st.lists(
    st.tuples(
        st.sampled_from(["c1", "c2", "c3"]), st.sampled_from(["ann", "bob", None]), st.integers(0, 2), st.booleans()
    )
)


@given(changes, st.booleans())
def test_complete_picture_is_what_the_agent_may_see(
    steps: list[tuple[str, str | None, int, bool]], limited: bool
) -> None:
    principal = OF_ANN if limited else ANY
    agent, clients = Agent(principal), dict[str, Client]()
    for revision, (client_id, user, looks, renews) in enumerate(steps):
        clients.pop(client_id, None)
        if user is not None:
            clients[client_id] = client(client_id, user, revision=revision)
        agent.sight.look_at([client_id])
        if renews:
            principal = ANY if principal is OF_ANN else OF_ANN
            agent.sight.change_principal(principal, clients)
        for _ in range(looks):
            if frame := agent.sight.step(clients, revision):
                agent.take(frame)
    agent.look(clients)
    visible = {key: each for key, each in clients.items() if principal is ANY or each.record.user == "ann"}
    assert agent.clients == {key: msgspec.json.decode(encoded(each)) for key, each in visible.items()}
    assert agent.frames[-1].complete


async def test_news_of_another_tenant_wakes_nobody_and_a_record_is_encoded_once() -> None:
    outlook = Outlook()
    one, two = outlook.open("s", ANY, []), outlook.open("s", ANY, [])
    for watch in (one, two):
        watch.news.clear()
    outlook.observe("acme.c1", None, Entry(1))
    assert not one.news.is_set()
    outlook.observe("default.c1", None, Entry(1))
    assert one.news.is_set()
    assert two.news.is_set()
    clients = {"c1": client("c1")}
    first, second = one.sight.step(clients, 1), two.sight.step(clients, 1)
    assert first is not None
    assert second is not None
    assert first.added[0] is second.added[0]
    outlook.close(one)
    outlook.close(two)
    outlook.observe("default.c1", None, None)
