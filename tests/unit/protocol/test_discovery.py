"""Discovery: what a query selects, page by page, and nothing that its principal may not see."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec
from protocol.access import Principal
from protocol.discovery import Client, Query, narrowed, offering, select
from protocol.errors import InvalidRequest
from protocol.records import ClientRecord, read_capabilities


def client(
    client_id: str, user: str = "ann", app: str = "todo", capabilities: list[Any] | None = None, **metadata: Any
) -> Client:
    offered = read_capabilities(msgspec.Raw(msgspec.json.encode(capabilities or [])))
    record = ClientRecord(
        client_id=client_id,
        tenant="acme",
        gateway_id="g",
        principal=user,
        app={"name": app} if app else {},
        metadata=metadata,
        capabilities=offered.raw,
        revision=1,
        connected_at="2026-01-01T00:00:00.000Z",
    )
    return Client(record, offered)


def agent(**limits: Any) -> Principal:
    role, tenant = limits.pop("role", "agent"), limits.pop("tenant", "acme")
    sets: dict[str, Any] = {name: frozenset(value) for name, value in limits.items()}
    return Principal("agent-1", role, tenant, 0.0, **sets)


CLIENTS = {
    found.record.client_id: found
    for found in (
        client("c3", "ann", "todo", ["add"], plan="gold", seats=3, beta=True),
        client("c1", "bob", "todo", ["add", {"name": "pay", "permissions": ["money"]}], plan="free"),
        client("c2", "ann", "", [{"id": "list", "actions": ["clear"]}], plan=None, tags=["a"]),
    )
}
EVERYBODY = ["c1", "c2", "c3"]


LABELLED = [
    {"type": "function", "name": "pay", "tags": ["cart", "money"], "authLevel": "user"},
    {"type": "component", "id": "f", "name": "pay", "componentType": "form", "path": "/cart/form", "tags": ["cart"]},
    {"type": "component", "id": "b", "componentType": "button", "path": "/home", "actions": ["click"]},
    {"type": "function", "name": "odd", "tags": "cart", "authLevel": 3, "path": ["/cart"]},
]


def ids(query: Query, **limits: Any) -> list[str]:
    return [found.record.client_id for found in select(CLIENTS, agent(**limits), query).clients]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(), EVERYBODY),
        (Query(client_id="c2"), ["c2"]),
        (Query(client_id="c9"), []),
        (Query(client_id="c2", user="bob"), []),
        (Query(name="add"), ["c1", "c3"]),
        (Query(name="list"), ["c2"]),
        (Query(name="clear"), []),
        (Query(user="ann"), ["c2", "c3"]),
        (Query(app="todo"), ["c1", "c3"]),
        (Query(app=""), ["c2"]),
        (Query(metadata={"plan": "gold"}), ["c3"]),
        (Query(metadata={"plan": "gold", "seats": "3", "beta": "true"}), ["c3"]),
        (Query(metadata={"plan": "gold", "seats": "4"}), []),
        (Query(metadata={"plan": "null"}), []),
        (Query(metadata={"tags": '["a"]'}), ["c2"]),
        (Query(metadata={"unknown": ""}), []),
        (Query(auth_level="public"), EVERYBODY),
        (Query(auth_level="user"), []),
        (Query(auth_level="public", component_type="form"), []),
        (Query(after="c1"), ["c2", "c3"]),
        (Query(after="c3"), []),
    ],
)
def test_every_field_narrows(query: Query, expected: list[str]) -> None:
    assert ids(query) == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"users": ["ann"]}, ["c2", "c3"]),
        ({"apps": ["todo"]}, ["c1", "c3"]),
        ({"clients": ["c1", "c9"]}, ["c1"]),
        ({"users": ["ann"], "apps": ["todo"]}, ["c3"]),
        ({"users": []}, []),
        ({"role": "app"}, []),
        ({"tenant": "other"}, []),
        ({"role": "admin", "tenant": "other"}, []),
    ],
)
def test_nothing_out_of_sight_is_listed_by_any_query(limits: dict[str, Any], expected: list[str]) -> None:
    assert ids(Query(), **limits) == expected
    for hidden in set(EVERYBODY) - set(expected):
        assert ids(Query(client_id=hidden), **limits) == []
        assert hidden not in ids(Query(after="c0", limit=1000), **limits)


def test_clients_out_of_sight_leave_no_gap_in_pages() -> None:
    page = select(CLIENTS, agent(users=["ann"]), Query(limit=1))
    assert ([found.record.client_id for found in page.clients], page.after) == (["c2"], "c2")
    last = select(CLIENTS, agent(users=["ann"]), Query(limit=1, after="c2"))
    assert ([found.record.client_id for found in last.clients], last.after) == (["c3"], None)


@given(limit=st.integers(1, 12), count=st.integers(0, 30))
def test_pages_together_are_the_whole_list(limit: int, count: int) -> None:
    clients = {f"c{number}": client(f"c{number}") for number in range(count)}
    seen: list[str] = []
    after: str | None = None
    while True:
        page = select(clients, agent(), Query(limit=limit, after=after))
        assert len(page.clients) <= limit
        seen += [found.record.client_id for found in page.clients]
        after = page.after
        if after is None:
            break
    assert seen == sorted(clients)


def test_offering_lists_only_what_may_be_used() -> None:
    def offers(target: str, action: str | None = None, **limits: Any) -> set[str]:
        return {found.record.client_id for found in offering(CLIENTS.values(), agent(**limits), target, action)}

    assert offers("add") == {"c1", "c3"}
    assert offers("add", "whatever") == {"c1", "c3"}
    assert offers("add", users=["ann"]) == {"c3"}
    assert offers("add", tenant="other") == set()
    assert offers("pay") == set()
    assert offers("pay", permissions=["money"]) == {"c1"}
    assert offers("list", "clear") == {"c2"}
    assert offers("list", "fill") == set()
    assert offers("list") == set()
    assert offers("sing") == set()


@pytest.mark.parametrize("body", [b'{"limit":0}', b'{"limit":1001}', b'{"limit":"1"}', b'{"metadata":{"a":1}}', b"[]"])
def test_bad_query_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        codec.decode(msgspec.json.Decoder(Query), body)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(), ["pay", "f", "b", "odd"]),
        (Query(name="pay"), ["pay", "f", "b", "odd"]),
        (Query(tags=("money", "none")), ["pay"]),
        (Query(tags=("cart",)), ["pay", "f"]),
        (Query(component_type="form"), ["f"]),
        (Query(auth_level="user"), ["pay"]),
        (Query(auth_level="public"), ["f", "b", "odd"]),
        (Query(path="/cart"), ["f"]),
        (Query(path=""), ["f", "b"]),
        (Query(tags=("cart",), auth_level="public"), ["f"]),
        (Query(tags=("money",), component_type="form"), []),
    ],
)
def test_labels_choose_capabilities_and_the_clients_that_have_one(query: Query, expected: list[str]) -> None:
    one = client("c1", capabilities=LABELLED)
    listed = msgspec.json.decode(narrowed(one.capabilities, query))
    assert [item.get("id") or item["name"] for item in listed] == expected
    assert [item for item in LABELLED if item in listed] == listed
    found = select({"c1": one}, agent(), query).clients
    assert found == ([one] if expected else [])
