"""What becomes of a capability, whatever stands in it: a tool that every provider and host takes, or none."""

import json
import re
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_api.tools.definitions import ToolDefinition, definitions_of
from agent_api.tools.schemas import MAX_BYTES, input_schema
from agent_api.tools.texts import safe_text

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
COMBINING = {"$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "enum", "const"}
TREE = {
    "$ref": "#/$defs/Node",
    "$defs": {"Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}},
}
KEYWORDS = [
    *("type", "properties", "items", "required", "$ref", "$defs", "anyOf", "allOf", "not", "enum", "const", "pattern"),
    *("x-mcp-header", "description", "default", "nullable", "exclusiveMinimum", "minimum", "additionalProperties"),
    *("prefixItems", "$id", "$schema", "title", "dependentRequired", "if", "patternProperties", "unheard"),
]
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**60), 2**60),
        st.sampled_from(["object", "string", "array", "#", "#/$defs/a", "https://evil.example/s", "x", "[", ""]),
        st.text(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(KEYWORDS), st.text(max_size=5)), inner, max_size=5),
    ),
    max_leaves=25,
)


def tools_of(capability: Any) -> tuple[ToolDefinition, ...]:
    return tuple(filter(None, definitions_of(msgspec.Raw(json.dumps(capability).encode()))))


def tool(**fields: Any) -> ToolDefinition:
    (found,) = tools_of({"type": "function", "name": "f", **fields})
    return found


@given(name=st.text(), schema=values, description=values, annotations=values)
def test_any_function_is_a_sound_tool_or_none(name: str, schema: Any, description: Any, annotations: Any) -> None:
    for each in tools_of(
        {"type": "function", "name": name, "parameters": schema, "description": description, "annotations": annotations}
    ):
        _require_sound(each)


@given(actions=values, ident=st.text())
def test_any_component_is_sound_tools_or_none(actions: Any, ident: str) -> None:
    for each in tools_of({"type": "component", "id": ident, "actions": actions}):
        _require_sound(each)


@given(values)
def test_anything_else_is_a_sound_tool_or_none(capability: Any) -> None:
    for each in tools_of(capability):
        _require_sound(each)


def _require_sound(each: ToolDefinition) -> None:
    assert all(NAME.fullmatch(name) for name in each.names)
    assert each.schema["type"] == "object"
    assert not COMBINING & each.schema.keys()
    assert jsonschema_rs.meta.is_valid(each.schema)
    jsonschema_rs.validator_for(each.schema, offline=True)  # every reference leads somewhere
    assert len(msgspec.json.encode(each.schema)) <= MAX_BYTES
    assert len(each.description) <= 1024
    assert all(isinstance(hint, bool) for name, hint in each.annotations.items() if name != "title")


def test_annotation_that_copies_arguments_into_headers_is_left_out_at_any_depth() -> None:
    named = {"type": "string", "x-mcp-header": "Secret"}
    schema = {"type": "object", "properties": {"a": named, "x-mcp-header": named}, "$defs": {"b": {"items": named}}}
    told = tool(parameters={**schema, "x-other": named}).schema
    assert told["properties"] == {"a": {"type": "string"}, "x-mcp-header": {"type": "string"}}
    assert "Secret" not in json.dumps(told)


def test_values_of_defaults_are_data() -> None:
    data = {"x-mcp-header": "kept", "$ref": "kept"}
    schema = {"type": "object", "properties": {"a": {"default": data, "enum": [data]}}}
    assert tool(parameters=schema).schema == schema


@pytest.mark.parametrize("schema", [None, {}, True, {"type": ["object", "null"]}, {"properties": {}}, {"type": 17}])
def test_root_is_an_object(schema: Any) -> None:
    found = tool(parameters=schema)
    assert (found.schema["type"], found.wrapped) == ("object", False)


def test_root_that_refers_is_followed() -> None:
    assert tool(parameters=TREE).schema == {
        "type": "object",
        "$defs": TREE["$defs"],
        "properties": {"next": {"$ref": "#/$defs/Node"}},
    }


def test_root_that_combines_becomes_a_value_and_its_references_stay_right() -> None:
    schema = {
        "anyOf": [{"$ref": "#/$defs/a"}, {"type": "object", "properties": {"up": {"$ref": "#"}}}],
        "$defs": {"a": {"type": "object", "required": ["k"]}},
    }
    found = input_schema(schema)
    assert found is not None
    assert found.wrapped
    validator = jsonschema_rs.validator_for(found.schema, offline=True)
    assert validator.is_valid({"value": {"up": {"k": 1, "up": {}}}})
    assert not validator.is_valid({"value": {"up": 3}})
    assert not validator.is_valid({})


NO_OBJECTS = [{"type": "array"}, {"type": "string"}, {"$ref": "#/$defs/a", "$defs": {"a": {"type": "number"}}}]


@pytest.mark.parametrize("schema", NO_OBJECTS)
def test_schema_that_no_command_can_meet_makes_no_tool(schema: Any) -> None:
    assert tools_of({"type": "function", "name": "f", "parameters": schema}) == ()


def test_words_of_older_drafts_are_translated() -> None:
    schema = {
        "type": "object",
        "properties": {
            "age": {"type": "integer", "minimum": 0, "exclusiveMinimum": True, "nullable": True},
            "pair": {"type": "array", "items": [{"type": "string"}]},
        },
    }
    assert tool(parameters=schema).schema["properties"] == {
        "age": {"type": ["integer", "null"], "exclusiveMinimum": 0},
        "pair": {"type": "array", "prefixItems": [{"type": "string"}]},
    }


def test_remote_and_lost_references_are_left_out() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "https://evil.example"}, "b": {"$ref": "#/nowhere"}}}
    assert tool(parameters=schema).schema["properties"] == {"a": {}, "b": {}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"property-{number}": {"type": "string"} for number in range(1000)}},
        {"type": "object", "prefixItems": [{}] * 5000},
        {"type": "object", "properties": {"a": {"description": "x" * 70_000}}},
    ],
)
def test_large_schema_is_any_object(schema: Any) -> None:
    assert tool(parameters=schema).schema == {"type": "object"}
    assert tools_of({"type": "function", "name": "f", "parameters": {**schema, "type": "array"}}) == ()


@pytest.mark.parametrize(
    ("reference", "leads"),
    [
        ("#/prefixItems/0", True),
        ("#/prefixItems/1", False),
        ("#/prefixItems/-1", False),
        ("#/prefixItems/00", False),
        ("#/prefixItems/+0", False),
        ("#/prefixItems/%30", True),
        ("%23/prefixItems/0", False),
        ("#/properties/a~1b%25", True),
        ("#", True),
        ("#a", False),
    ],
)
def test_reference_leads_where_a_json_pointer_does(reference: str, leads: bool) -> None:
    properties = {"a/b%": {"type": "string"}, "x": {"$ref": reference}}
    found = tool(parameters={"type": "object", "properties": properties, "prefixItems": [{"type": "string"}]})
    assert found.schema["properties"]["x"] == ({"$ref": reference} if leads else {})


def test_texts_hide_nothing() -> None:
    hidden = "Add\u202e it\u200b\U000e0041\U000e0042\x00\x1b[2J\U000e0101!"
    assert tool(description=hidden, title=hidden).description == "Add it[2J!"
    inside = tool(parameters={"type": "object", "properties": {"a": {"description": hidden}}})
    assert inside.schema["properties"]["a"]["description"] == "Add it[2J!"
    assert safe_text("👩‍🚒 می‌خواهم\nx") == "👩‍🚒 می‌خواهم\nx"
    assert len(safe_text("é" * 5000)) == 1024


def test_name_that_had_to_be_changed_has_digits_of_its_digest() -> None:
    plain, dotted = tool(name="ui_show"), tool(name="ui.show")
    assert plain.names[0] == "ui_show"
    assert dotted.names[0] == f"ui_show_{dotted.digest[:4]}"
    assert tool(name="find_tools").names[0].startswith("find_tools_")
    assert re.fullmatch(r"_3d_[0-9a-f]{4}", tool(name="3d").names[0])


def test_actions_of_a_component_are_tools() -> None:
    component = {
        "type": "component",
        "id": "cart",
        "description": "The cart",
        "actions": {"add": {"description": "Add", "parameters": {"type": "object"}}, "clear": None},
    }
    found = [(each.names[0], each.target, each.action, each.description) for each in tools_of(component)]
    assert found == [("cart_add", "cart", "add", "Add"), ("cart_clear", "cart", "clear", "The cart")]
