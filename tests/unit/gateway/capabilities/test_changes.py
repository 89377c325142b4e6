"""Changes to a registered list: what joins it, and whose place it takes."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.capabilities.changes import merged, with_properties


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def changed(registered: list[Any], *changes: Any) -> list[Any]:
    return [json.loads(bytes(item)) for item in merged(raw(registered), [raw(change) for change in changes])]


A, B = {"type": "function", "name": "a"}, {"type": "component", "id": "b", "actions": []}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], [A, B]),
        ([{"name": "c"}], [A, B, {"name": "c"}]),
        ([{"name": "a", "x": 1}], [{"name": "a", "x": 1}, B]),
        ([{"id": "b", "x": 1}, {"id": "b", "x": 2}], [A, {"id": "b", "x": 2}]),
        ([{"name": "c"}, {"name": "c", "x": 1}], [A, B, {"name": "c", "x": 1}]),
        ([7, {}, {"name": ["a"]}], [A, B, 7, {}, {"name": ["a"]}]),
    ],
)
def test_change_takes_the_place_of_its_name_or_joins_at_the_end(changes: list[Any], expected: list[Any]) -> None:
    assert changed([A, B], *changes) == expected


names = st.sampled_from("abcd")


@given(registered=st.lists(names, unique=True), changes=st.lists(names))
def test_each_name_stands_once_and_the_last_word_counts(registered: list[str], changes: list[str]) -> None:
    numbered = [{"name": name, "x": number} for number, name in enumerate(changes)]
    found = changed([{"name": name} for name in registered], *numbered)
    assert [item["name"] for item in found] == list(dict.fromkeys([*registered, *changes]))
    last = {item["name"]: item["x"] for item in numbered}
    assert [item.get("x") for item in found] == [last.get(item["name"]) for item in found]


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        ({"id": "b", "properties": {"x": 0, "z": 0}}, {"x": 1, "y": [2], "z": 0}),
        ({"id": "b"}, {"x": 1, "y": [2]}),
        ({"id": "b", "properties": [7]}, {"x": 1, "y": [2]}),
    ],
)
def test_properties_join_those_that_a_component_has(component: Any, expected: Any) -> None:
    others = [A, {"name": "b"}, {"id": 7, "name": "c"}]
    items = with_properties(raw([*others, component]), {"b": {"x": raw(1), "y": raw([2])}})
    assert [json.loads(bytes(item)) for item in items] == [*others, {**component, "properties": expected}]
