"""What clients offer, read once for each content."""

import gc
from typing import Any

import msgspec
import pytest

from gateway.contracts import NO_CONTRACT, Contract, Contracts
from protocol.errors import InvalidFrame, InvalidParameters, RateLimited, UnknownCapability

ADD = {"name": "add", "parameters": {"required": ["a"]}}
LIST = {"type": "component", "id": "list", "actions": {"clear": {"parameters": {"required": ["a"]}}, "show": None}}


def read(*capabilities: Any, known: Contracts | None = None, owner: str = "ann", now: float = 0) -> Contract:
    raw = [msgspec.Raw(msgspec.json.encode(one)) for one in capabilities]
    return (known or Contracts()).read(raw, owner, now)


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


# --- the effort that one principal may cause ---


def usual(version: int) -> list[Any]:
    """Return what a large application may offer: 500 functions of four parameters."""
    properties = {name: {"type": "string", "description": "what it is for"} for name in ("a", "b", "c", "d")}
    return [
        {
            "name": f"f{number}",
            "description": f"of version {version}",
            "parameters": {"type": "object", "properties": properties, "description": f"{version}-{number}"},
        }
        for number in range(500)
    ]


def costly(version: int) -> list[Any]:
    """Return a list about as costly as one may be."""
    return [{"name": f"f{n}", "parameters": {"anyOf": [{"const": f"{version}-{n}-{i}"} for i in range(1900)]}}
            for n in range(25)]  # fmt: skip


def test_ordinary_applications_never_meet_the_limit() -> None:
    known = Contracts()
    first = read(*usual(0), known=known)
    for version in range(1, 10):  # of one user
        read(*usual(version), known=known)
    for second in range(1, 40):  # an application that is being written
        read(*usual(100 + second), known=known, now=second)
    for _ in range(1000):  # clients of one application and one `sub`
        assert read(*usual(0), known=known, now=40) is first


def test_crafted_lists_exhaust_their_owners_share_and_nobody_elses() -> None:
    known = Contracts()
    for version in range(2):
        read(*costly(version), known=known)
    with pytest.raises(RateLimited, match="too many new ones in a short time") as caught:
        read("add", known=known)
    wait_seconds = caught.value.retry_after_ms / 1000
    assert 1 < wait_seconds < 15
    read("add", known=known, owner="bob")
    with pytest.raises(RateLimited):
        read("add", known=known, now=wait_seconds - 0.1)
    read("add", known=known, now=wait_seconds)


def test_known_content_is_free_for_who_has_used_up_the_share() -> None:
    known = Contracts()
    theirs = read(ADD, known=known, owner="bob")
    for version in range(2):
        read(*costly(version), known=known)
    assert read(ADD, known=known) is theirs


@pytest.mark.parametrize(
    "refused",
    [
        [*costly(1)[:24], {"name": "bad", "parameters": {"type": 7}}],
        [{"name": "deep", "parameters": {"anyOf": [{"const": f"x{i}"} for i in range(2100)]}}],
        [{"name": f"p{i}", "parameters": {"pattern": rf"\p{{L}}{{20}}x{i}"}} for i in range(500)],
        ["x" * 60_000, *costly(1)[:1]],
    ],
)
def test_refused_lists_cost_their_owner_too(refused: list[Any]) -> None:
    known = Contracts()
    for _ in range(1000):
        try:
            read(*refused, known=known)
        except RateLimited:
            return
        except InvalidFrame:
            continue
    pytest.fail("no end to it")


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
