"""What clients offer, read once for each content."""

import gc
import weakref
from typing import Any

import msgspec
import pytest

from gateway.capabilities.contracts import NO_CONTRACT, Contract, Contracts
from protocol.errors import InvalidFrame, InvalidParameters, Overloaded, RateLimited, UnknownCapability

ADD = {"name": "add", "parameters": {"required": ["a"]}}
LIST = {"type": "component", "id": "list", "actions": {"clear": {"parameters": {"required": ["a"]}}, "show": None}}


def read(*capabilities: Any, known: Contracts | None = None, owner: str = "ann", now: float = 0) -> Contract:
    raw = [msgspec.Raw(msgspec.json.encode(one)) for one in capabilities]
    return (known or Contracts()).read(raw, ("default", owner), now)


def test_equal_lists_share_one_contract_for_as_long_as_somebody_uses_it() -> None:
    known = Contracts()
    first = read(ADD, known=known)
    assert read(ADD, known=known) is first
    assert read(ADD, "sub", known=known) is not first
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None


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
def test_schemas_that_are_too_large_together_are_left_out(function: Any) -> None:
    assert not refused(read(*(function(number) for number in range(10))))
    contract = read(ADD, *(function(number) for number in range(499)))
    assert "too large together" in contract.capabilities.refused[0].message
    assert 10 < len(contract.capabilities.offers) < 400


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


# --- what is left out ---


def refused(contract: Contract) -> dict[str, str]:
    """Return why each capability is left out, by its name."""
    return {one.name: one.message for one in contract.capabilities.refused}


@pytest.mark.parametrize(
    ("odd", "name", "why"),
    [
        ({"name": "bad", "parameters": {"type": "what"}}, "bad", "`capabilities[bad].parameters`: not a JSON Schema"),
        (
            {"id": "bad", "actions": {"show": {}, "clear": {"parameters": {"$ref": "#"}}}},
            "bad",
            "`capabilities[bad].actions[clear].parameters`: the JSON Schema is refused",
        ),
        ({"description": "nameless"}, "capabilities[1]", "`capabilities[1]`: object missing required field `type`"),
        (7, "capabilities[1]", "`capabilities[1]`: expected an object or a name"),
        ("", "capabilities[1]", "`capabilities[1]`: `name`: expected `str` of length >= 1"),
        ({"name": "bad", "parameters": "object"}, "bad", "`capabilities[1]`: `parameters`: expected"),
        ({"name": "bad", "permissions": "admin"}, "bad", "`capabilities[1]`: `permissions`: expected `array`"),
        ({"name": "bad", "permission": ["admin"]}, "bad", "`capabilities[1]`: `permission`: there is no such field"),
        ({"name": "bad", "inputSchema": {"type": 7}}, "bad", "`capabilities[bad].parameters`: not a JSON Schema"),
        ({"name": "bad", "x": [[]] * 2, "rateLimit": 0}, "bad", "`capabilities[1]`: `rateLimit`: expected `float`"),
        ({"name": "add", "description": "another"}, "add", "`capabilities[1]`: the name or id 'add' is used twice"),
    ],
)
def test_odd_capability_is_left_out_and_the_others_stay(odd: Any, name: str, why: str) -> None:
    contract = read(ADD, odd, LIST)
    assert list(contract.capabilities.offers) == ["add", "list"]
    assert [item.get("name", item.get("id")) for item in msgspec.json.decode(contract.capabilities.raw)] == [
        "add",
        "list",
    ]
    assert list(refused(contract)) == [name]
    assert refused(contract)[name].startswith(why)


def test_deeply_nested_capability_is_left_out_however_deep_msgspec_could_go() -> None:
    for levels in (65, 500, 990, 5000):
        deep = b'{"type":"function","name":"f","x":' + b"[" * levels + b"]" * levels + b"}"
        contract = Contracts().read([msgspec.Raw(b'"add"'), msgspec.Raw(deep)], ("default", "ann"), 0)
        assert list(contract.capabilities.offers) == ["add"]
        assert "nested" in contract.capabilities.refused[0].message


def test_first_of_duplicates_stays() -> None:
    contract = read({"name": "add", "description": "first"}, {"id": "add", "description": "second"})
    assert contract.offer("add", None).kind == "function"


def test_capability_that_is_refused_is_not_offered_in_its_former_version() -> None:
    known = Contracts()
    read(ADD, known=known)
    contract = read({**ADD, "parameters": {"type": "what"}}, LIST, known=known)
    with pytest.raises(UnknownCapability):
        contract.offer("add", None)


def test_more_than_500_capabilities_are_refused_whole() -> None:
    assert len(read(*(f"f{number}" for number in range(500))).capabilities.offers) == 500
    with pytest.raises(InvalidFrame, match="at most 500 are accepted, these are 501"):
        read(*(f"f{number}" for number in range(501)))


def test_what_is_told_of_refused_capabilities_is_bounded() -> None:
    contract = read(*({"name": f"f{number}" + "x" * 200, "permission": "x" * 1000} for number in range(500)))
    assert (len(contract.capabilities.refused), contract.capabilities.more_refused) == (50, 450)
    assert len(msgspec.json.encode(contract.capabilities.refused)) < 50_000


def test_different_lists_of_one_user_leave_room_for_a_neighbours() -> None:
    known, kept = Contracts(max_bytes=100_000), list[Contract]()
    lists = (read({"name": f"f{number}", "description": "x" * 2000}, known=known) for number in range(100))
    with pytest.raises(Overloaded) as refused:
        kept.extend(lists)
    assert refused.value.details == {"limit": "agent"}
    assert len(kept) < 50
    of_neighbour = [msgspec.Raw(b'"add"')]
    known.read(of_neighbour, ("acme", "bob"), 0)
    assert read({"name": "f0", "description": "x" * 2000}, known=known) is kept[0]  # it counts once
    fitted = len(kept)
    kept.clear()
    gc.collect()
    others = ({"name": f"g{number}", "description": "x" * 2000} for number in range(fitted))
    kept.extend(read(other, known=known, now=60) for other in others)
    assert len(kept) == fitted
