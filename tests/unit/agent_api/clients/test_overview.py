"""Overviews: what clients offer in two lists, in steps and within a bound, each capability with its client."""

from typing import Any

import msgspec
import pytest

from agent_api.clients import overview
from agent_api.clients.overview import Overview, OverviewQuery, WrittenCapabilities
from protocol.discovery import Client, Query
from protocol.records import DETACHED, ClientRecord, read_capabilities

ADD = {"type": "function", "name": "add", "tags": ["cart"], "clientId": "somebody else"}
FORM = {
    "type": "component",
    "id": "form",
    "componentType": "form",
    "actions": ["send", {"name": "clear", "parameters": {}}],
}
MENU = {"type": "component", "id": "menu", "path": "/home", "actions": {"open": {"description": "Open it"}}}


ALL = OverviewQuery()


def client(client_id: str, *capabilities: Any) -> Client:
    offered = read_capabilities(msgspec.Raw(msgspec.json.encode(capabilities)))
    record = ClientRecord(
        client_id=client_id,
        tenant="acme",
        gateway_id="g",
        principal="ann",
        capabilities=offered.raw,
        revision=1,
        connected_at="2026-01-01T00:00:00.000Z",
    )
    return Client(record, offered)


def made(clients: dict[str, Client], wanted: OverviewQuery = ALL) -> tuple[list[Any], list[Any], str | None]:
    found = Overview(clients, wanted, WrittenCapabilities().of)
    while not found.look():
        pass
    return (
        [msgspec.json.decode(each) for each in found.functions],
        [msgspec.json.decode(each) for each in found.components],
        found.after,
    )


def by_id(*clients: Client) -> dict[str, Client]:
    return {each.record.client_id: each for each in clients}


def test_capabilities_are_told_with_their_client_and_actions_by_name() -> None:
    functions, components, after = made(by_id(client("c2", FORM), client("c1", ADD, MENU)))
    assert functions == [{**ADD, "clientId": "c1"}]
    assert components == [
        {**MENU, "clientId": "c1"},
        {**FORM, "clientId": "c2", "actions": {"send": {}, "clear": {"parameters": {}}}},
    ]
    assert after is None


def test_client_that_has_lost_its_connection_is_left_out_until_it_is_back() -> None:
    there, away = client("c1", ADD), client("c2", FORM)
    away = Client(msgspec.structs.replace(away.record, state=DETACHED), away.capabilities)
    assert made(by_id(there, away)) == ([{**ADD, "clientId": "c1"}], [], None)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (OverviewQuery(functions=Query(tags=("none",))), ["menu", "form"]),
        (OverviewQuery(components=Query(component_type="form")), ["add", "form"]),
        (OverviewQuery(Query(auth_level="admin"), Query(path="/ho")), ["menu"]),
        (OverviewQuery(after="c1"), ["form"]),
    ],
)
def test_each_list_has_filters_of_its_own(wanted: OverviewQuery, expected: list[str]) -> None:
    functions, components, _ = made(by_id(client("c1", ADD, MENU), client("c2", FORM)), wanted)
    assert [each.get("name") or each["id"] for each in (*functions, *components)] == expected


def test_what_does_not_fit_comes_behind_the_client_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "MAX_OVERVIEW_BYTES", 150)
    clients = by_id(*(client(f"c{number}", ADD) for number in range(5)))
    pages = [made(clients, OverviewQuery(after=after)) for after in ("", "c1", "c3")]
    assert [[each["clientId"] for each in functions] for functions, _, _ in pages] == [
        ["c0", "c1"],
        ["c2", "c3"],
        ["c4"],
    ]
    assert [after for _, _, after in pages] == ["c1", "c3", None]


def test_one_client_that_alone_is_too_large_is_told_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "MAX_OVERVIEW_BYTES", 10)
    functions, components, after = made(by_id(client("c1", ADD, FORM), client("c2", ADD)))
    assert (len(functions), len(components), after) == (1, 1, "c1")


def test_many_clients_take_several_steps_and_those_that_leave_meanwhile_are_left_out() -> None:
    clients = by_id(*(client(f"c{number:04}", MENU) for number in range(overview.MAX_LOOKS + 1)))
    found = Overview(clients, OverviewQuery(components=Query(path="/else")), WrittenCapabilities().of)
    assert not found.look()
    clients.popitem()
    assert found.look()


def test_capabilities_are_written_once_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    written, one = WrittenCapabilities(), client("c1", ADD)
    assert written.of(one) is written.of(one)
    changed = client("c1", MENU)
    assert written.of(changed) != written.of(one)
    monkeypatch.setattr(overview, "MAX_WRITTEN_BYTES", 10)
    first = written.of(client("c2", ADD))
    assert written.of(client("c3", ADD)) != first
