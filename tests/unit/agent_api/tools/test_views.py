"""Names of tools among hostile neighbours, which clients each has, and what is listed."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.nats.clients_bucket import record

from agent_api.commands.orders import CommandBody
from agent_api.tools import calls
from agent_api.tools.calls import NO_OPTIONS, CallOptions
from agent_api.tools.groups import TenantTools
from agent_api.tools.listing import ToolListing, listing_of
from agent_api.tools.slices import at_once
from agent_api.tools.views import Narrowing, ToolView
from protocol.access import Principal
from protocol.discovery import Client
from protocol.errors import AmbiguousClient, ClientNotFound, InvalidParameters, UnknownCapability
from protocol.records import read_capabilities
from protocol.shares import Shares

AGENT = Principal("agent", "agent", "default", float("inf"))
ONE, TWO = {"type": "object", "required": ["a"]}, {"type": "object", "required": ["b"]}


def function(name: str = "add", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, **fields}


def client(client_id: str, *capabilities: Any, at: int = 1, user: str = "ann", **fields: Any) -> Client:
    raw = msgspec.Raw(json.dumps(capabilities).encode())
    connected_at = f"2026-01-01T00:00:{at:02}.000Z"
    fields |= {"connected_at": connected_at, "principal": user}
    of_client = record(client_id, capabilities=bytes(memoryview(raw)), **fields)
    return Client(of_client, read_capabilities(raw))


def tenant(*clients: Client, room: int = 10_000) -> TenantTools:
    tools = TenantTools(Shares(room, "no room"))
    for each in clients:
        tools.put(each.record.client_id, each)
    return tools


def command_of(view: ToolView, name: str, arguments: Any, options: CallOptions = NO_OPTIONS) -> CommandBody:
    return calls.command_of(view, name, msgspec.Raw(msgspec.json.encode(arguments)), options)


def listed(view: ToolView) -> ToolListing:
    return at_once(listing_of(view))


def names(tools: TenantTools, principal: Principal = AGENT, narrowing: Narrowing = Narrowing()) -> list[str]:  # noqa: B008  a value
    return [tool.name for tool in listed(ToolView(tools, principal, narrowing)).tools]


def targets(tools: TenantTools, principal: Principal = AGENT) -> dict[str, Any]:
    view = ToolView(tools, principal)
    found = {name: view.find(name) for name in names(tools, principal)}
    return {name: group.definition.schema for name, group in found.items() if group is not None}


def test_same_tool_of_several_clients_is_one() -> None:
    assert names(tenant(client("c1", function()), client("c2", function(), at=2))) == ["add"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_older_of_two_keeps_the_name_whichever_is_heard_of_first(order: tuple[int, int]) -> None:
    clients = client("c1", function(parameters=ONE)), client("c2", function(parameters=TWO), at=2)
    found = targets(tenant(*(clients[place] for place in order)))
    (second,) = found.keys() - {"add"}
    assert found == {"add": ONE, second: TWO}
    assert second.startswith("add_")


def test_page_that_reloads_keeps_its_tools_names() -> None:
    tools = tenant(client("c1", function(parameters=ONE)), client("c2", function(parameters=TWO), at=2))
    tools.put("c1", None)
    assert targets(tools) == {"add": TWO}
    tools.put("c3", client("c3", function(parameters=ONE), at=3))
    assert targets(tools)["add"] == ONE


def test_longer_name_means_its_tool_whatever_that_is_called_now() -> None:
    tools = tenant(client("c1", function(parameters=ONE)), client("c2", function(parameters=TWO), at=2))
    (second,) = names(tools)[1:]
    tools.put("c1", None)
    assert names(tools) == ["add"]
    group = ToolView(tools, AGENT).find(second)
    assert group is not None
    assert group.definition.schema == TWO


def test_nobody_takes_the_longer_name_of_a_tool() -> None:
    tools = tenant(client("c1", function(parameters=ONE)), client("c2", function(parameters=TWO), at=2))
    (second,) = names(tools)[1:]
    tools.put("c1", None)
    tools.put("c3", client("c3", function(second, parameters=ONE), at=3, user="mallory"))
    group = ToolView(tools, AGENT).find(second)
    assert group is not None
    assert group.definition.schema == TWO
    assert names(tools)[1].startswith(f"{second}_")


def test_what_an_agent_may_not_see_leaves_no_trace_in_names() -> None:
    tools = tenant(client("c1", function(parameters=ONE)), client("c2", function(parameters=TWO), at=2, user="bob"))
    limited = msgspec.structs.replace(AGENT, users=frozenset({"bob"}))
    assert targets(tools, limited) == {"add": TWO}
    assert ToolView(tools, limited).find(names(tools)[1]) is not None  # its own, by its longer name


@pytest.mark.parametrize(
    "limits",
    [
        {"users": frozenset({"bob", "nobody"})},
        {"clients": frozenset({"c2", "c9"})},
        {"apps": frozenset({"todo"})},
        {"users": frozenset({"bob", "ann"}), "clients": frozenset({"c2", "c3"}), "apps": frozenset({"todo"})},
    ],
)
def test_limits_of_a_token_decide_which_clients_there_are(limits: Any) -> None:
    tools = tenant(
        client("c1", function(), function("a"), app={"name": "notes"}),
        client("c2", function(), function("b"), at=2, user="bob", app={"name": "todo"}),
        client("c3", function(), at=3, user="eve", app={"name": "notes"}),
    )
    view = ToolView(tools, msgspec.structs.replace(AGENT, **limits))
    assert [tool.name for tool in listed(view).tools] == ["add", "b"]
    (group, _) = view.groups()
    assert [each.record.client_id for each in view.clients_of(group)] == ["c2"]
    assert view.offering(group, "c1") is None
    assert view.find("a") is None
    assert command_of(view, "add", {}).client_id == "c2"


def test_permission_hides_a_tool_from_who_lacks_it() -> None:
    tools = tenant(client("c1", function(permissions=["admin"])), client("c2", function("open"), at=2))
    assert names(tools) == ["open"]
    assert names(tools, msgspec.structs.replace(AGENT, permissions=frozenset({"*"}))) == ["add", "open"]


HOSTILE = st.lists(
    st.builds(
        lambda name, schema, description: function(name, parameters=schema, description=description),
        st.sampled_from(["add", "add_", "ad.d", "find_tools", "x" * 70, "1", "add_0000"]),
        st.sampled_from([ONE, TWO, {}, {"anyOf": [{}]}, {"$ref": "#"}, {"properties": {"_client": {}}}]),
        st.text(max_size=20),
    ),
    max_size=50,
    unique_by=lambda each: each["name"],
)


@given(HOSTILE)
def test_younger_neighbours_change_nothing_about_a_tool(capabilities: list[Any]) -> None:
    sound = function("add", parameters=ONE, description="Add it")
    before = listed(ToolView(tenant(client("c1", sound)), AGENT)).tools[0]
    after = listed(ToolView(tenant(client("c1", sound), client("c2", *capabilities, at=2, user="eve")), AGENT)).tools
    assert before.name == "add"
    if sound not in capabilities:
        assert before in after
    assert len({tool.name for tool in after}) == len(after)


def test_hundreds_of_one_name_have_names_of_their_own() -> None:
    schemas = [{"type": "object", "required": [f"p{number}"]} for number in range(300)]
    tools = tenant(*(client(f"c{n}", function(parameters=schema), at=n % 60) for n, schema in enumerate(schemas)))
    view = ToolView(tools, AGENT)
    found = [view.name_of(group) for group in view.groups()]
    assert len(set(found)) == 300
    assert [view.find(name or "") for name in found] == list(view.groups())


# --- which client ---


def test_choice_appears_with_the_second_client() -> None:
    tools = tenant(client("c1", function(parameters=ONE), app={"name": "todo"}, metadata={"title": "A\u202eb"}))
    assert listed(ToolView(tools, AGENT)).tools[0].schema == ONE
    tools.put("c2", client("c2", function(parameters=ONE), at=2, user="bob"))
    schema = listed(ToolView(tools, AGENT)).tools[0].schema
    assert schema["properties"]["_client"]["enum"] == ["c1", "c2"]
    assert "c1 (user ann, app todo, title Ab); c2 (user bob)" in schema["properties"]["_client"]["description"]
    assert schema["required"] == ["a", "_client"]


def test_choice_among_sessions_of_one_user_is_free() -> None:
    tools = tenant(
        client("c1", function()),
        client("c2", function(), at=2, metadata={"visible": True}),
        client("c3", function(), at=3),
    )
    view = ToolView(tools, AGENT)
    assert "required" not in listed(view).tools[0].schema
    assert command_of(view, "add", {}).client_id == "c2"


@pytest.mark.parametrize("order", [1, -1])
def test_choice_is_required_if_any_client_is_another_users(order: int) -> None:
    clients = [client(f"c{n:02}", function(), user="bob" if n == 30 else "ann") for n in range(31)]
    schema = listed(ToolView(tenant(*clients[::order]), AGENT)).tools[0].schema
    assert schema["required"] == ["_client"]


def test_capability_that_another_of_its_name_hides_takes_no_room() -> None:
    component = {"type": "component", "id": "add", "actions": ["call"]}
    tools = tenant(client("c1", component, function()))
    assert [group.definition.action for group in tools] == ["call"]
    tools.put("c1", None)
    assert tools.groups == {}


def test_call_among_several_users_has_to_choose() -> None:
    tools = tenant(client("c1", function()), client("c2", function(), at=2, user="bob"))
    view = ToolView(tools, AGENT)
    with pytest.raises(AmbiguousClient) as raised:
        command_of(view, "add", {})
    assert raised.value.details["clients"] == [{"clientId": "c1", "user": "ann"}, {"clientId": "c2", "user": "bob"}]
    chosen = command_of(view, "add", {"_client": msgspec.Raw(b'"c2"'), "title": msgspec.Raw(b'"x"')})
    assert (chosen.client_id, bytes(memoryview(chosen.command.parameters))) == ("c2", b'{"title":"x"}')
    assert command_of(view, "add", {}, CallOptions("c1")).client_id == "c1"
    with pytest.raises(ClientNotFound):
        command_of(view, "add", {}, CallOptions("c3"))


def test_choice_never_goes_to_the_application() -> None:
    tools = tenant(client("c1", function()), client("c2", function(), at=2, user="bob"))
    view = ToolView(tools, AGENT)
    command = command_of(view, "add", {"_client": msgspec.Raw(b'"c2"')}, CallOptions("c2"))
    assert (command.client_id, bytes(memoryview(command.command.parameters))) == ("c2", b"{}")
    with pytest.raises(AmbiguousClient):
        command_of(view, "add", {"_client": msgspec.Raw(b"null")})
    with pytest.raises(InvalidParameters, match="_client"):
        command_of(view, "add", {"_client": msgspec.Raw(b"7")})


def test_choice_among_very_many_arguments_is_refused_and_without_it_they_pass() -> None:
    tools = tenant(client("c1", function()), client("c2", function(), at=2, user="bob"))
    view, many = ToolView(tools, AGENT), {str(number): 1 for number in range(30_000)}
    parameters = command_of(view, "add", many, CallOptions("c1")).command.parameters
    assert json.loads(bytes(memoryview(parameters))) == many
    with pytest.raises(InvalidParameters, match="fields beside `_client`"):
        command_of(view, "add", {**many, "_client": "c1"})


def test_client_of_another_tool_of_that_name_cannot_be_chosen() -> None:
    tools = tenant(client("c1", function(parameters=ONE)), client("c2", function(parameters=TWO), at=2))
    with pytest.raises(ClientNotFound):
        command_of(ToolView(tools, AGENT), "add", {}, CallOptions("c2"))


def test_own_argument_of_that_name_stays_the_applications() -> None:
    schema = {"type": "object", "properties": {"_client": {"type": "number"}}}
    tools = tenant(client("c1", function(parameters=schema)), client("c2", function(parameters=schema), at=2))
    view = ToolView(tools, AGENT)
    assert list(listed(view).tools[0].schema["properties"]) == ["_client", "_client_"]
    command = command_of(view, "add", {"_client": msgspec.Raw(b"7"), "_client_": msgspec.Raw(b'"c1"')})
    assert (command.client_id, bytes(memoryview(command.command.parameters))) == ("c1", b'{"_client":7}')


def test_value_is_unwrapped_for_the_application() -> None:
    tools = tenant(client("c1", function(parameters={"anyOf": [{"type": "object"}]})))
    view = ToolView(tools, AGENT)
    assert (
        bytes(memoryview(command_of(view, "add", {"value": msgspec.Raw(b'{"a":1}')}).command.parameters)) == b'{"a":1}'
    )
    for value in ({}, {"value": msgspec.Raw(b"[1]")}):
        with pytest.raises(InvalidParameters):
            command_of(view, "add", value)


# --- what is listed ---


def test_more_than_fit_are_found_by_tools_of_our_own() -> None:
    tools = tenant(client("c1", *(function(f"f{number:03}") for number in range(200))))
    found = names(tools)
    assert len(found) == 128
    assert found[-3:] == ["find_tools", "call_tool", "find_clients"]
    view = ToolView(tools, AGENT)
    hidden = {f"f{number:03}" for number in range(200)} - set(found)
    assert all(command_of(view, name, {}).client_id == "c1" for name in hidden)


def test_more_clients_than_are_listed_are_found_by_a_tool_of_our_own() -> None:
    tools = tenant(*(client(f"c{number}", function()) for number in range(21)))
    assert names(tools) == ["add", "find_clients"]
    assert "enum" not in listed(ToolView(tools, AGENT)).tools[0].schema["properties"]["_client"]


def test_list_is_narrowed() -> None:
    tools = tenant(
        client("c1", function("a"), function("b"), app={"name": "one"}),
        client("c2", function("c"), app={"name": "two"}),
    )
    assert names(tools, narrowing=Narrowing(app="one")) == names(tools, narrowing=Narrowing(names=frozenset("abz")))
    assert names(tools, narrowing=Narrowing(app="two", names=frozenset("abc"))) == ["c"]
    with pytest.raises(UnknownCapability):
        command_of(ToolView(tools, AGENT, Narrowing(names=frozenset("a"))), "b", {})


def test_narrowing_renames_nothing() -> None:
    tools = tenant(
        client("c1", function(parameters=ONE), app={"name": "notes"}),
        client("c2", function(parameters=TWO), at=2, app={"name": "todo"}),
    )
    (name,) = names(tools, narrowing=Narrowing(app="todo"))
    assert name in names(tools)[1:]
    assert command_of(ToolView(tools, AGENT), name, {}).client_id == "c2"


def test_list_is_the_same_for_the_same_clients_however_they_came() -> None:
    clients = [client(f"c{n}", function(f"f{n % 7}", description=str(n % 3)), at=n) for n in range(20)]
    assert listed(ToolView(tenant(*clients), AGENT)) == listed(ToolView(tenant(*reversed(clients)), AGENT))


def test_user_with_very_many_tools_leaves_room_for_others() -> None:
    many = client("c1", *(function(f"f{number}") for number in range(200)))
    tools = tenant(many, client("c2", function("sound"), at=2, user="bob"), room=100)
    assert len(tools.groups) < 100
    assert "sound" in {group.definition.target for group in tools}
    tools.put("c1", None)
    tools.put("c3", client("c3", *(function(f"g{number}") for number in range(50)), at=3, user="ann"))
    assert "g9" in {group.definition.target for group in tools}


def test_nothing_stays_of_clients_that_are_gone() -> None:
    tools = tenant(client("c1", function()), client("c2", function("b")))
    for client_id in ("c1", "c2"):
        tools.put(client_id, None)
    assert (tools.groups, tools.claimants("add"), tools.clients, list(tools)) == ({}, [], {}, [])
