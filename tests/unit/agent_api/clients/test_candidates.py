from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.memory import bytes_left_by
from support.played.known import Known, client

from agent_api.clients.candidates import EVERYBODY, FEW, MAX_POOLED, MAX_POOLS, Candidates, Fitting
from protocol import subjects
from protocol.access import AGENT, Principal
from protocol.discovery import Client, Query, matches, offering
from protocol.runtime.clients.replica import ReplicaEntry

ANYBODY = Principal("agent", AGENT, "default", float("inf"))
LOCKED = {"type": "function", "name": "locked", "permissions": ["keys"]}
LIST = {"type": "component", "id": "list", "actions": ["add"]}
QUERIES = [EVERYBODY, Query(user="ann"), Query(app="todo"), Query(app="mail"), Query(user="bob", app="todo")]
OFFERS: list[tuple[Any, ...]] = [(), ("f",), ("f", "g"), (LOCKED, "f"), (LIST,)]


class Scanned(dict[str, Client]):
    """A tenant's clients, and whether somebody has looked through all of them."""

    was_scanned = False

    def values(self) -> Any:
        self.was_scanned = True
        return super().values()


class Bench:
    """Candidates that follow a mirror."""

    def __init__(self, max_pooled: int = MAX_POOLED) -> None:
        self.candidates = Candidates(max_pooled)
        self.known = Known(listeners=(self.candidates.observe,))

    def of(self, principal: Principal = ANYBODY, target: str = "f", action: str | None = None) -> list[str]:
        return sorted(self.candidates.of(self.known.clients(principal.tenant), principal, target, action))

    def scans(self, principal: Principal = ANYBODY, target: str = "f") -> bool:
        """Ask, and tell whether there was no pool, so that all clients were looked through."""
        clients = Scanned(self.known.clients(principal.tenant))
        self.candidates.of(clients, principal, target, None)
        return clients.was_scanned

    def among(self, principal: Principal, target: str, action: str | None, query: Query) -> Fitting:
        return self.candidates.among(self.known.clients(principal.tenant), principal, target, action, query)


def limited(**limits: Any) -> Principal:
    return msgspec.structs.replace(ANYBODY, **limits)


_names = st.sampled_from([f"c{number}" for number in range(6)])
_users = st.sampled_from(["ann", "bob", "eve"])
_tenants = st.sampled_from(["default", "acme"])
_news = st.lists(st.tuples(_names, _tenants, st.none() | st.tuples(_users, st.sampled_from(OFFERS))), max_size=30)
_some = st.none() | st.frozensets(st.sampled_from(["ann", "bob", "todo", "c1", "c2"]))
_principals = st.builds(
    Principal,
    st.sampled_from(["agent-1", "agent-2"]),
    st.sampled_from(["agent", "admin", "app"]),
    _tenants,
    st.floats(1, 10),
    permissions=st.sampled_from([frozenset[str](), frozenset({"keys"}), frozenset({"*"})]),
    users=_some,
    apps=_some,
    clients=_some,
)
_asked = st.lists(st.tuples(_principals, st.sampled_from(["f", "g", "locked", "list"]), st.sampled_from([None, "add"])))


@given(_news, _asked)
def test_candidates_are_always_those_that_a_look_at_all_clients_finds(
    news: list[Any], asked: list[tuple[Principal, str, str | None]]
) -> None:
    bench, clients = Bench(), dict[tuple[str, str], Client]()
    for client_id, tenant, value in news:
        if value is not None:
            user, offers = value
            new = client(client_id, *offers, user=user, tenant=tenant, app={"name": "todo"})
            clients[tenant, client_id] = new
            bench.known.put(new)
        elif clients.pop((tenant, client_id), None) is not None:
            bench.known.remove(client_id, tenant)
        for principal, target, action in asked:
            found = offering(
                (each for (of, _), each in clients.items() if of == principal.tenant), principal, target, action
            )
            assert bench.of(principal, target, action) == sorted(each.record.client_id for each in found)
            for query in QUERIES:
                fitting = [each for each in found if matches(each, query)]
                ids, of_one_user = bench.among(principal, target, action, query)
                assert sorted(ids) == sorted(each.record.client_id for each in fitting)
                assert of_one_user == (len({each.record.user for each in fitting}) <= 1)


def test_pool_follows_what_clients_offer() -> None:
    bench = Bench()
    bench.known.put(client("c1", "f"))
    bench.known.put(client("c2", "g"))
    assert bench.of() == ["c1"]
    bench.known.put(client("c2", "g", "f"))
    bench.known.put(client("c1", "g"))
    assert bench.of() == ["c2"]
    bench.known.remove("c2")
    assert bench.of() == []


def test_many_clients_of_one_user_are_not_looked_through_for_each_command(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    for number in range(FEW + 1):
        bench.known.put(client(f"c{number}", "f", user="kiosk"))
    kiosks = limited(users=frozenset({"kiosk"}))
    assert len(bench.of(kiosks)) == FEW + 1
    monkeypatch.setattr("agent_api.clients.candidates.usable", None)
    assert len(bench.of(kiosks)) == FEW + 1


def test_tokens_of_many_agents_with_the_same_rights_share_a_pool() -> None:
    bench = Bench()
    bench.known.put(client("c1", "f"))
    agents = [limited(sub=f"agent-{number}", expires_at=float(number)) for number in range(10)]
    assert [bench.scans(agent) for agent in agents] == [True] + [False] * 9
    assert {tuple(bench.of(agent)) for agent in agents} == {("c1",)}


def test_invented_targets_drive_nothing_out() -> None:
    bench = Bench()
    bench.known.put(client("c1", "f"))
    bench.of()
    for number in range(MAX_POOLS + 1):
        assert bench.of(target=f"invented-{number}") == []
    assert not bench.scans()


def test_pools_are_bounded_and_the_used_ones_stay() -> None:
    bench = Bench()
    bench.known.put(client("c1", *(f"t{number}" for number in range(MAX_POOLS + 10)), "f"))
    for number in range(MAX_POOLS + 10):
        bench.of(target=f"t{number}")
        assert bench.of() == ["c1"]
    newest = range(MAX_POOLS + 10)[-(MAX_POOLS - 1) :]  # one is that of `f`
    assert not any(bench.scans(target=f"t{number}") for number in newest)
    assert not bench.scans()
    assert bench.scans(target=f"t{newest[0] - 1}")


def test_ids_in_all_pools_together_are_bounded() -> None:
    bench = Bench(max_pooled=5)
    bench.known.put(client("c1", "f", "g", "h"))
    bench.known.put(client("c2", "f", "g", "h"))
    assert bench.of(target="g") == bench.of(target="h") == ["c1", "c2"]
    assert not bench.scans(target="g")
    assert not bench.scans(target="h")
    bench.known.put(client("c3", "f", "g", "h"))
    assert not bench.scans(target="h")
    assert bench.scans(target="g")
    for number in range(10):
        bench.known.put(client(f"d{number}", "f"))
    assert len(bench.of()) == 13
    assert not bench.scans()
    assert bench.scans(target="h")


def test_clients_of_a_user_are_known() -> None:
    bench = Bench()
    bench.known.put(client("c1", user="ann"))
    bench.known.put(client("c1", user="ann"))
    bench.known.put(client("c2", user="ann"))
    bench.known.put(client("c3", user="ann", tenant="acme"))
    assert set(bench.candidates.of_user("default", "ann")) == {"c1", "c2"}
    bench.known.put(client("c2", user="bob"))
    assert set(bench.candidates.of_user("default", "ann")) == {"c1"}
    assert set(bench.candidates.of_user("default", "eve")) == set()
    for client_id, tenant in (("c1", "default"), ("c2", "default"), ("c3", "acme")):
        bench.known.remove(client_id, tenant)
    users = [("default", "ann"), ("default", "bob"), ("acme", "ann")]
    assert [set(bench.candidates.of_user(*user)) for user in users] == [set()] * 3


def test_nothing_is_kept_of_users_without_clients() -> None:
    candidates, gone = Candidates(), list[tuple[str, ReplicaEntry, None]]()

    def many_come_and_go() -> None:
        for number in range(1000):
            ids = [("default", "c1"), ("default", "c2"), (f"t{number}", "c3")]
            for tenant, client_id in ids:
                entry = ReplicaEntry(1, client(client_id, user=f"u{number}", tenant=tenant))
                came = (subjects.client_key(tenant, client_id), None, entry)
                gone.append((came[0], entry, None))
                candidates.observe(*came)
            while gone:
                candidates.observe(*gone.pop())

    assert bytes_left_by(many_come_and_go) < 20_000
