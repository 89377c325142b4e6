"""JSON Schemas as zod and pydantic write them: all are taken, and check what they are meant to."""

import datetime
import decimal
import enum
import json
import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import pydantic
import pytest
from support.paths import ROOT

from gateway.capabilities.schemas import compile_schema
from protocol.errors import InvalidParameters

ZOD: dict[str, Any] = json.loads((ROOT / "tests/support/zod/schemas.json").read_text())["schemas"]
T = TypeVar("T")


def accepts(schema: Any, parameters: Any) -> bool:
    try:
        compile_schema(schema, "here").check(msgspec.Raw(json.dumps(parameters).encode()))
    except InvalidParameters:
        return False
    return True


def zod(form: str) -> Iterator[Any]:
    """Yield what zod writes of a form for each of its targets."""
    found = [schema for name, schema in ZOD.items() if name.startswith(f"{form}, ")]
    assert found
    yield from found


def test_all_forms_of_zod_are_taken() -> None:
    assert len(ZOD) > 500
    for name, schema in ZOD.items():
        assert compile_schema(schema, name).nodes


TREE = {"name": "a", "children": [{"name": "b", "children": []}]}
TERM = {"term": {"op": "+", "left": 1, "right": {"op": "*", "left": 2, "right": 3}}}


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ("tree", TREE, {"name": "a", "children": [{"name": "b", "children": [{"name": 7, "children": []}]}]}),
        ("linked list", {"value": 1, "next": {"value": 2, "next": None}}, {"value": 1, "next": {"value": "x"}}),
        (
            "mutual recursion",
            {"name": "a", "friends": [{"email": "a@b.com"}]},
            {"name": "a", "friends": [{"email": 7}]},
        ),
        ("arithmetic term", TERM, {"term": {"op": "+", "left": 1, "right": {"op": "-", "left": 2, "right": 3}}}),
        ("json", {"a": [1, None, {"b": "x"}]}, None),
        ("regex with look-ahead", "Password1", "password1"),
        ("regex with look-behind", "a@example.com", "a.@example.com"),
        ("rfc5322 email", "a@b.com", "a@"),
        ("iso duration", "P1DT2H", "P"),
        ("hostname", "a.example.com", "-a-"),
        ("greater than", 6, 5),
        ("less than", 4, 5),
        ("between, both open", 0.5, 1),
        ("nullable", None, 7),
        ("nullable", "x", 7),
        ("nullable object", {"a": None}, {"a": {"b": 7}}),
        (
            "nullable reference",
            {"a": None, "b": {"id": "7f2c1f2e-9a41-4d0b-8c8b-1b2a3c4d5e6f"}},
            {"a": None, "b": None},
        ),
        ("default that looks like a schema", {"a": 1}, 7),
    ],
)
def test_schema_of_zod_checks_what_it_is_meant_to(form: str, good: Any, bad: Any) -> None:
    for schema in zod(form):
        assert accepts(schema, good), schema
        assert form == "json" or not accepts(schema, bad), schema


# --- pydantic ---


class Color(enum.Enum):
    RED = "red"
    BLUE = 2


class Address(pydantic.BaseModel):
    city: str
    zip: Annotated[str, pydantic.Field(pattern=r"^[1-9]\d{4}$")]


class Node(pydantic.BaseModel):
    value: int
    children: list["Node"] = []
    parent: "Node | None" = None


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, pydantic.Field(gt=0, le=9)]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    friend: "Cat | Dog | None" = None


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]
    next: str | None = None


class Everything(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", json_schema_extra={"examples": [{"$id": "urn:x"}]})

    amount: decimal.Decimal
    bounded: Annotated[decimal.Decimal, pydantic.Field(max_digits=8, decimal_places=2)]
    moment: datetime.datetime
    day: datetime.date
    span: datetime.timedelta
    ident: uuid.UUID
    color: Color
    pair: tuple[int, str]
    many: tuple[int, ...]
    unique: set[str]
    mapping: dict[str, list[float]]
    numbered: dict[int, Address]
    secret: pydantic.SecretStr
    link: pydantic.HttpUrl
    raw: bytes
    anything: Any
    one_of: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
    maybe: Address | None = None
    like_a_schema: dict[str, str] = {"$id": "urn:x"}
    value: pydantic.JsonValue = None


MODELS: dict[str, Any] = {
    "everything": Everything,
    "address": Address,
    "node": Node,
    "animals": list[Cat | Dog],
    "dog": Dog,
    "page of nodes": Page[Node],
    "json": pydantic.JsonValue,
    "named": Annotated[str, pydantic.Field(min_length=1, examples=["a"], json_schema_extra={"const": {"$id": 1}})],
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_all_forms_of_pydantic_are_taken(name: str, mode: Literal["validation", "serialization"]) -> None:
    assert compile_schema(pydantic.TypeAdapter(MODELS[name]).json_schema(mode=mode), name).nodes


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("address", {"city": "x", "zip": "12345"}, {"city": "x", "zip": "02345"}),
        ("node", {"value": 1, "children": [{"value": 2}]}, {"value": 1, "children": [{"value": 2, "children": [{}]}]}),
        ("dog", {"kind": "dog", "friend": {"kind": "cat", "lives": 9}}, {"kind": "dog", "friend": {"kind": "cow"}}),
        ("page of nodes", {"items": [{"value": 1, "parent": {"value": 2}}]}, {"items": [{"value": 1, "parent": {}}]}),
    ],
)
def test_schema_of_pydantic_checks_what_it_is_meant_to(name: str, good: Any, bad: Any) -> None:
    schema = pydantic.TypeAdapter(MODELS[name]).json_schema()
    assert accepts(schema, good)
    assert not accepts(schema, bad)
