"""The forms in which applications write a capability: all come to one, and none is open that was meant to be closed."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.capabilities.forms import normal_form
from protocol import codec
from protocol.errors import InvalidFrame
from protocol.records import Rate, read_offer

SCHEMA = {"type": "object", "required": ["a"]}


def normal(item: Any) -> Any:
    return msgspec.json.decode(normal_form(msgspec.Raw(msgspec.json.encode(item)), lambda nodes: None))


def refusal(item: Any) -> str:
    with pytest.raises(InvalidFrame) as caught:
        normal(item)
    return caught.value.message


@pytest.mark.parametrize("name", ["parameters", "inputSchema", "input_schema"])
def test_other_names_of_the_schema_of_parameters_are_the_schema(name: str) -> None:
    assert normal({"name": "add", name: SCHEMA}) == {"type": "function", "name": "add", "parameters": SCHEMA}
    in_map = normal({"id": "list", "actions": {"clear": {name: SCHEMA}, "show": None}})
    assert in_map["actions"] == {"clear": {"parameters": SCHEMA}, "show": None}
    listed = normal({"id": "list", "actions": [{"name": "clear", name: SCHEMA}, "show"]})
    assert listed["actions"] == [{"name": "clear", "parameters": SCHEMA}, "show"]


@pytest.mark.parametrize("name", ["outputSchema", "output_schema", "returnSchema", "return_schema"])
def test_other_names_of_the_schema_of_results_are_the_schema(name: str) -> None:
    assert normal({"type": "function", "name": "add", name: SCHEMA})["result"] == SCHEMA


def test_what_says_the_same_in_two_ways_is_taken_once() -> None:
    item = {"name": "add", "parameters": SCHEMA, "inputSchema": SCHEMA, "outputSchema": None, "title": "Add"}
    assert normal(item) == {"type": "function", "name": "add", "parameters": SCHEMA, "title": "Add"}
    assert normal({"name": "add", "parameters": None, "inputSchema": SCHEMA})["parameters"] == SCHEMA


@pytest.mark.parametrize(
    ("item", "names"),
    [
        ({"name": "add", "parameters": SCHEMA, "inputSchema": {}}, ["`parameters`", "`inputSchema`"]),
        ({"name": "add", "inputSchema": SCHEMA, "input_schema": {}}, ["`inputSchema`", "`input_schema`"]),
        ({"name": "add", "result": {}, "returnSchema": SCHEMA}, ["`result`", "`returnSchema`"]),
        ({"id": "b", "type": "button", "componentType": "link", "actions": []}, ["`type`", "`componentType`"]),
        ({"name": "add", "rateLimit": {"limit": 1, "maxRequests": 2}}, ["`limit`", "`maxRequests`"]),
        ({"id": "b", "actions": {"x": {"parameters": {}, "inputSchema": SCHEMA}}}, ["`parameters`", "`inputSchema`"]),
    ],
)
def test_what_says_it_in_two_ways_that_differ_is_an_error(item: Any, names: list[str]) -> None:
    assert all(name in refusal(item) for name in names)


@pytest.mark.parametrize("known", [{}, {"componentType": "button"}])
def test_other_type_with_actions_is_a_component_of_that_type(known: dict[str, str]) -> None:
    given_form = {"type": "button", "id": "save", "actions": ["click"], **known}
    assert normal(given_form) == {"type": "component", "id": "save", "actions": ["click"], "componentType": "button"}


@pytest.mark.parametrize(
    ("limit", "rate"),
    [
        ({"maxRequests": 30, "windowSeconds": 60}, Rate(0.5, 30)),
        ({"maxRequests": 30, "perSeconds": 60}, Rate(0.5, 30)),
        ({"limit": 3, "note": "x"}, Rate(3, 3)),
        ({"maxRequests": 30.0, "windowSeconds": 60.0}, Rate(0.5, 30)),
    ],
)
def test_rate_limit_is_read_in_other_words(limit: Any, rate: Rate) -> None:
    raw = normal_form(msgspec.Raw(msgspec.json.encode({"name": "add", "rateLimit": limit})), lambda nodes: None)
    assert read_offer(raw).rate == rate


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("permission", "permissions"),
        ("Permissions", "permissions"),
        ("permisions", "permissions"),
        ("permisson", "permissions"),
        ("premissions", "permissions"),
        ("ratelmiit", "rateLimit"),
        ("requiredPermissions", "permissions"),
        ("required_permission", "permissions"),
        ("rate_limit", "rateLimit"),
        ("rateLimits", "rateLimit"),
        ("ratelimt", "rateLimit"),
        ("auth_level", "authLevel"),
        ("authlevel", "authLevel"),
        ("requiresApproval", "approval"),
        ("aproval", "approval"),
        ("parameter", "parameters"),
        ("paramaters", "parameters"),
        ("inputschema", "inputSchema"),
        ("params", "parameters"),
        ("arguments", "parameters"),
    ],
)
def test_near_miss_of_what_guards_a_capability_leaves_it_out(field: str, meant: str) -> None:
    assert refusal({"name": "add", field: {"x": 1}}) == f"`{field}`: there is no such field; did you mean `{meant}`?"
    assert f"`actions[x].{field}`" in refusal({"id": "list", "actions": {"x": {field: {"x": 1}}}})


@pytest.mark.parametrize("field", ["permissions", "rateLimit", "authLevel", "approval"])
def test_restriction_of_a_single_action_leaves_its_component_out(field: str) -> None:
    assert "belongs to a component" in refusal({"id": "list", "actions": {"clear": {field: ["admin"]}}})


@pytest.mark.parametrize("name", ["parameters", "inputSchema", "input_schema"])
@pytest.mark.parametrize("kind", ["component", "button"])
def test_schema_of_a_whole_component_leaves_it_out(name: str, kind: str) -> None:
    """Nothing would be checked by it, because each action has a schema of its own."""
    assert "belongs to each action" in refusal({"type": kind, "id": "list", "actions": ["clear"], name: SCHEMA})
    assert "parameters" not in normal({"type": kind, "id": "list", "actions": ["clear"], "inputSchema": None})


@pytest.mark.parametrize(
    "field", ["perSecond", "per_seconds", "windowMs", "window", "perMinute", "requests", "limits", "max_requests"]
)
def test_near_miss_within_a_rate_limit_leaves_the_capability_out(field: str) -> None:
    assert f"`rateLimit.{field}`" in refusal({"name": "add", "rateLimit": {"limit": 5, field: 60}})


@pytest.mark.parametrize(
    "fields",
    [
        {"title": "Add", "tags": ["a"], "annotations": {"readOnly": True}, "approval": "required", "authLevel": 2},
        {"icon": "plus", "category": "lists", "version": 3, "examples": [{"title": "x"}], "input": "a text"},
        {"properties": {"permission": 1, "rate_limit": 2}},
        {"approved": True, "limit": 3, "perm": 1, "authority": "x", "param_count": 3},
    ],
)
def test_other_fields_are_kept_and_passed_on_to_the_byte(fields: dict[str, Any]) -> None:
    for given_form in ({"type": "function", "name": "add"}, {"type": "component", "id": "list", "actions": ["a"]}):
        raw = msgspec.Raw(b" " + msgspec.json.encode({**given_form, **fields}))
        assert normal_form(raw, lambda nodes: None) is raw


def test_names_of_strangers_are_compared_for_a_bounded_while() -> None:
    spent: list[float] = []
    many = {f"permi{number}": 1 for number in range(200)}
    normal_form(msgspec.Raw(msgspec.json.encode({"name": "add", **many})), spent.append)
    assert sum(spent) > 1000
    assert "more than 256" in refusal({"name": "add"} | {f"permi{number}": 1 for number in range(300)})


names = st.sampled_from(
    ["type", "name", "id", "actions", "parameters", "inputSchema", "rateLimit", "componentType", "permissions", "x"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["function", "component", "button", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
)


@given(item=st.dictionaries(names, values, max_size=6) | values)
def test_arbitrary_capability_is_read_or_refused_by_our_own_error(item: Any) -> None:
    try:
        raw = normal_form(msgspec.Raw(msgspec.json.encode(item)), lambda nodes: None)
        read_offer(raw)
    except InvalidFrame:
        return
    again = normal_form(raw, lambda nodes: None)
    assert codec.raw_bytes(again) == codec.raw_bytes(raw)
