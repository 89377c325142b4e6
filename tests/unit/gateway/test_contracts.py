"""What clients offer, read once for each content."""

import gc
from typing import Any

import msgspec
import pytest

from gateway.contracts import NO_CONTRACT, Contract, Contracts
from protocol.errors import InvalidFrame, InvalidParameters, UnknownCapability

ADD = {"name": "add", "parameters": {"required": ["a"]}}
LIST = {"type": "component", "id": "list", "actions": {"clear": {"parameters": {"required": ["a"]}}, "show": None}}


def read(*capabilities: Any, known: Contracts | None = None) -> Contract:
    raw = [msgspec.Raw(msgspec.json.encode(one)) for one in capabilities]
    return (known or Contracts()).read(raw)


def test_equal_lists_share_one_contract_for_as_long_as_somebody_uses_it() -> None:
    known = Contracts()
    first = read(ADD, known=known)
    assert read(ADD, known=known) is first
    assert read(ADD, "sub", known=known) is not first
    del first
    gc.collect()
    assert len(known._known) == 0


def _doubled(name: int) -> Any:
    """Return a function whose schema is 255 nodes in 600 bytes."""
    twice = {f"d{level}": {"anyOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(7)}
    schema = {"description": str(name), "$ref": "#/$defs/d0", "$defs": {**twice, "d7": {}}}
    return {"name": f"f{name}", "parameters": schema}


@pytest.mark.parametrize(
    "function",
    [
        _doubled,
        lambda name: {"name": f"f{name}", "parameters": {"patternProperties": {rf"\p{{L}}{{20}}x{name}": True}}},
    ],
)
def test_schemas_that_are_too_large_together_are_refused(function: Any) -> None:
    read(*(function(number) for number in range(10)))
    with pytest.raises(InvalidFrame, match="too large together"):
        read(*(function(number) for number in range(500)))


def test_offer_names_what_there_is() -> None:
    contract = read(ADD, LIST)
    assert contract.offer("add", "anything").target == "add"
    assert contract.offer("list", "show").target == "list"
    with pytest.raises(UnknownCapability, match="the client offers no 'sub'"):
        contract.offer("sub", None)
    with pytest.raises(UnknownCapability, match="'list' has no action 'fly'; it has clear, show"):
        contract.offer("list", "fly")
    with pytest.raises(UnknownCapability):
        NO_CONTRACT.offer("add", None)


@pytest.mark.parametrize(
    ("target", "action", "parameters", "sound"),
    [
        ("add", "whatever", b'{"a":1}', True),
        ("add", None, b"{}", False),
        ("list", "clear", b'{"a":1}', True),
        ("list", "clear", b"{}", False),
        ("list", "show", b"{}", True),
    ],
)
def test_parameters_are_checked_against_the_schema_of_the_action(
    target: str, action: str | None, parameters: bytes, sound: bool
) -> None:
    contract = read(ADD, LIST)
    offer = contract.offer(target, action)
    if sound:
        contract.check(offer, action, msgspec.Raw(parameters))
    else:
        with pytest.raises(InvalidParameters):
            contract.check(offer, action, msgspec.Raw(parameters))


@pytest.mark.parametrize(
    ("capabilities", "where"),
    [
        ([{"name": "bad", "parameters": {"type": "what"}}], r"`capabilities\[bad\]\.parameters`"),
        (
            [{"id": "list", "actions": {"clear": {"parameters": {"$ref": "#"}}}}],
            r"`capabilities\[list\]\.actions\[clear\]\.parameters`",
        ),
        ([ADD, {"name": "add"}], r"`capabilities\[1\]`: the name or id 'add' is used twice"),
        ([{"description": "nameless"}], r"`capabilities\[0\]`"),
        ([7], r"`capabilities\[0\]`: expected an object or a name"),
        (["x"] * 501, "at most 500"),
        ([{"name": "add", "parameters": "object"}], r"`capabilities\[0\]`.*`parameters`"),
    ],
)
def test_refused_list_names_the_entry(capabilities: list[Any], where: str) -> None:
    with pytest.raises(InvalidFrame, match=where):
        read(*capabilities)
