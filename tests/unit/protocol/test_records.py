"""Capabilities: loose forms are read, what others see is what the client sent."""

from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec, records
from protocol.errors import InvalidFrame
from protocol.records import CapabilityList, ClientRecord, Offer, Rate, read_capabilities, read_offer, with_type

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def parse(*items: Any) -> CapabilityList:
    return read_capabilities(msgspec.Raw(msgspec.json.encode(items)))


def offer(item: Any) -> Offer:
    (only,) = parse(item).offers.values()
    return only


def function(name: str, schema: dict[str, Any] | None = None, *permissions: str) -> Offer:
    return Offer(name, "function", frozenset(permissions), {None: schema})


def component(name: str, **actions: dict[str, Any] | bool | None) -> Offer:
    return Offer(name, "component", frozenset(), cast("dict[str | None, Any]", actions))


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("add", function("add")),
        ({"name": "add"}, function("add")),
        ({"type": "function", "name": "add"}, function("add")),
        ({"name": "add", "id": "x"}, function("add")),
        ({"name": "add", "parameters": {"a": 1}, "permissions": ["p", "q"]}, function("add", {"a": 1}, "p", "q")),
        ({"id": "list"}, component("list")),
        ({"type": "component", "id": "list", "name": "A list"}, component("list")),
        ({"id": "list", "actions": ["add", "clear"]}, component("list", add=None, clear=None)),
        ({"id": "list", "actions": [{"name": "add"}, "clear"]}, component("list", add=None, clear=None)),
        ({"id": "list", "actions": {"add": {"parameters": {}}, "clear": None}}, component("list", add={}, clear=None)),
        ({"id": "list", "actions": [{"name": "add", "parameters": False}]}, component("list", add=False)),
    ],
)
def test_loose_forms_are_read(item: Any, expected: Offer) -> None:
    assert offer(item) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (5, Rate(5, 5)),
        (0.2, Rate(0.2, 1)),
        ({"limit": 3}, Rate(3, 3)),
        ({"limit": 30, "perSeconds": 60, "note": "x"}, Rate(0.5, 30)),
    ],
)
def test_rate_limit_is_read_of_functions_and_components(given: Any, expected: Rate | None) -> None:
    assert offer({"name": "add", "rateLimit": given}).rate == expected
    assert offer({"id": "list", "rateLimit": given}).rate == expected


def test_function_takes_any_action_and_component_only_its_own() -> None:
    one, other = offer({"name": "add", "parameters": {"a": 1}}), offer({"id": "list", "actions": {"add": {}}})
    assert one.offers("call")
    assert one.offers(None)
    assert one.schema("call") == one.schema(None) == {"a": 1}
    assert other.offers("add")
    assert not other.offers("remove")
    assert not other.offers(None)


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        (7, "expected an object or a name"),
        (["add"], "expected an object or a name"),
        (None, "expected an object or a name"),
        ("", "`name`: expected `str` of length >= 1"),
        ("x" * 257, "`name`: expected `str` of length <= 256"),
        ({}, "object missing required field `type`"),
        ({"type": "tool", "name": "b"}, "`type`: invalid value 'tool'"),
        ({"type": None, "name": "b"}, "`type`: expected `str`"),
        ({"type": "function", "id": "b"}, "object missing required field `name`"),
        ({"type": "component", "name": "b"}, "object missing required field `id`"),
        ({"name": "b", "parameters": []}, "`parameters`: expected `bool | object | null`"),
        ({"name": "b", "permissions": "all"}, "`permissions`: expected `array`, got `str`"),
        ({"name": "b", "permissions": [1]}, "`permissions[0]`: expected `str`, got `int`"),
        ({"id": "b", "actions": "add"}, "`actions`: expected `object | array`, got `str`"),
        ({"id": "b", "actions": {"add": 1}}, "`actions[...]`: expected `object | null`"),
        ({"id": "b", "actions": [{}]}, "`actions[0]`: object missing required field `name`"),
        ({"name": "b", "rateLimit": "5/s"}, "`rateLimit`: expected `float | object | null`"),
        ({"name": "b", "rateLimit": 0}, "`rateLimit`: expected `float` >= 1e-05"),
        ({"name": "b", "rateLimit": 1e-310}, "`rateLimit`: expected `float` >= 1e-05"),
        ({"id": "b", "rateLimit": -1.5}, "`rateLimit`: expected `float` >= 1e-05"),
        ({"name": "b", "rateLimit": {}}, "`rateLimit`: object missing required field `limit`"),
        ({"name": "b", "rateLimit": {"limit": 0}}, "`rateLimit.limit`: expected `float` >= 1.0"),
        ({"name": "b", "rateLimit": {"limit": 1, "perSeconds": 0}}, "`rateLimit.perSeconds`: expected `float`"),
    ],
)
def test_bad_capability_is_refused_by_its_field(item: Any, sentence: str) -> None:
    with pytest.raises(InvalidFrame) as caught:
        read_offer(msgspec.Raw(msgspec.json.encode(with_type(item))))
    assert caught.value.message.startswith(sentence)


def test_what_a_newer_gateway_has_written_is_passed_on_and_the_others_are_found() -> None:
    of_tomorrow = {"type": "of-tomorrow", "name": "x"}
    found = parse("add", of_tomorrow, 7, {"type": "function", "name": "sub"})
    assert list(found.offers) == ["add", "sub"]
    assert of_tomorrow in msgspec.json.decode(found.raw)


def test_five_hundred_capabilities_are_accepted() -> None:
    assert len(parse(*(f"f{number}" for number in range(500))).offers) == 500


def test_typed_capability_is_passed_on_to_the_byte() -> None:
    item = b'{"type" : "function", "name":"f",  "of-tomorrow": [1.0, 1e2, 123456789012345678901], "name2":"\\u00e9"}'
    assert codec.raw_bytes(read_capabilities(msgspec.Raw(b"[" + item + b"]")).raw) == b"[" + item + b"]"


def test_guessed_type_is_spelled_out_and_unknown_fields_stay() -> None:
    raw = parse("add", {"name": "f", "x": {"y": [None]}}, {"id": "c", "z": 1}).raw
    assert msgspec.json.decode(raw) == [
        {"type": "function", "name": "add"},
        {"type": "function", "name": "f", "x": {"y": [None]}},
        {"type": "component", "id": "c", "z": 1},
    ]


@given(st.lists(names, max_size=20, unique=True))
def test_list_of_a_record_is_read_back(found: list[str]) -> None:
    parsed = parse(*found)
    again = read_capabilities(parsed.raw)
    assert again.offers == parsed.offers
    assert again.raw == parsed.raw


def test_equal_lists_have_equal_fingerprints_and_others_do_not() -> None:
    lists = [parse(), parse("a"), parse("a", "b"), parse("b", "a"), parse("a,b"), parse({"name": "a"})]
    assert len({found.fingerprint for found in lists}) == len(lists)
    assert parse("a", "b").fingerprint == parse("a", "b").fingerprint
    assert parse().fingerprint == records.EMPTY_CAPABILITIES.fingerprint


def test_record_travels_with_the_names_of_the_contract() -> None:
    record = ClientRecord(
        client_id="c1",
        tenant="t",
        gateway_id="g",
        principal="ann",
        app={"name": "todo"},
        capabilities=msgspec.Raw(b"[]"),
        revision=3,
        connected_at="2026-01-01T00:00:00.000Z",
    )
    data = msgspec.json.encode(record)
    assert set(msgspec.json.decode(data)) == {
        "clientId", "tenant", "gatewayId", "principal", "user", "app", "metadata", "capabilities", "revision",
        "connectedAt", "focusedAt", "state", "refused",
    }  # fmt: skip
    assert msgspec.json.decode(data, type=ClientRecord) == record
    assert (record.user, record.app_name, record.state) == ("ann", "todo", "active")


def test_record_that_left_out_what_most_have_is_read() -> None:
    data = b"""{"clientId": "c1", "tenant": "t", "gatewayId": "g", "principal": "ann", "capabilities": [],
        "revision": 3, "connectedAt": "2026-01-01T00:00:00.000Z"}"""
    record = msgspec.json.decode(data, type=ClientRecord)
    assert (record.app, record.metadata, record.state) == ({}, {}, "active")
    assert (record.user, record.focused_at, record.is_visible) == ("ann", None, False)
