"""The keywords of JSON Schema (draft 4 to 2020-12) with schemas as values.

The values of all other keywords, such as `default`, `const`, `enum` and `examples`, are data, even if they look like
schemas, unless a `$ref` leads to them.
"""

from collections.abc import Container, Iterator
from typing import Any

DEFINITIONS = ("$defs", "definitions")
# Apply to the value itself.
_HERE = ("not", "if", "then", "else")
_HERE_LISTS = ("allOf", "anyOf", "oneOf")
_HERE_MAPS = ("dependentSchemas", "dependencies")
# Apply to the items or properties of the value.
_EACH_PROPERTY = ("additionalProperties", "unevaluatedProperties")
_EACH_ITEM = ("items", "additionalItems", "contains", "unevaluatedItems")
_BELOW = (*_EACH_PROPERTY, *_EACH_ITEM, "propertyNames")
_BELOW_LISTS = ("items", "prefixItems")
_BELOW_MAPS = ("properties", "patternProperties")

SINGLE = frozenset((*_HERE, *_BELOW))
LISTS = frozenset((*_HERE_LISTS, *_BELOW_LISTS))
MAPS = frozenset((*_HERE_MAPS, *_BELOW_MAPS, *DEFINITIONS))
_APPLIED_HERE = frozenset((*_HERE, *_HERE_LISTS, *_HERE_MAPS))

Schema = dict[str, Any] | bool


def schemas_within(name: str, value: Any) -> Iterator[tuple[str | int | None, Schema]]:
    """Yield the schemas in a keyword's value, each with its key or index if there are several."""
    if name in MAPS and isinstance(value, dict):
        yield from ((key, each) for key, each in value.items() if _is_schema(each))
    elif name in LISTS and isinstance(value, list):
        yield from ((place, each) for place, each in enumerate(value) if _is_schema(each))
    elif name in SINGLE and _is_schema(value):
        yield None, value


def applies_here(name: str) -> bool:
    """Tell whether the schemas of a keyword apply to the same value as the keyword."""
    return name in _APPLIED_HERE


def checks_of(node: dict[str, Any], value: Any, wanted: Container[int]) -> Iterator[tuple[Schema, Any]]:
    """Yield each wanted schema (by identity) within a node that a value meets, with the value or its part that does.

    As often as not the check stops earlier. A `$ref` is the caller's to follow.
    """
    for name in _APPLIED_HERE & node.keys():
        yield from ((each, value) for each in _wanted(node, name, wanted))
    if isinstance(value, dict):
        yield from _checks_of_object(node, value, wanted)
    elif isinstance(value, list):
        yield from _checks_of_list(node, value, wanted)


def _checks_of_object(
    node: dict[str, Any], value: dict[Any, Any], wanted: Container[int]
) -> Iterator[tuple[Schema, Any]]:
    for key, each in schemas_within("properties", node.get("properties")):
        if key in value and id(each) in wanted:
            yield each, value[key]
    for name in ("patternProperties", *_EACH_PROPERTY):
        yield from ((each, inner) for each in _wanted(node, name, wanted) for inner in value.values())
    yield from ((each, key) for each in _wanted(node, "propertyNames", wanted) for key in value)


def _checks_of_list(node: dict[str, Any], value: list[Any], wanted: Container[int]) -> Iterator[tuple[Schema, Any]]:
    for name in _BELOW_LISTS:
        if isinstance(node.get(name), list):
            pairs = zip(schemas_within(name, node[name]), value, strict=False)
            yield from ((each, inner) for (_, each), inner in pairs if id(each) in wanted)
    for name in _EACH_ITEM:
        if not isinstance(node.get(name), list):
            yield from ((each, inner) for each in _wanted(node, name, wanted) for inner in value)


def _wanted(node: dict[str, Any], name: str, wanted: Container[int]) -> list[Schema]:
    return [each for _, each in schemas_within(name, node.get(name)) if id(each) in wanted]


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)
