"""Translates the dialects of zod and others into the JSON Schema of their draft.

OpenAPI 3.0 has `exclusiveMinimum: true`, and `nullable` (section 4.7.24). Regular expressions of JavaScript may have a
`]` that closes nothing, which drafts up to 7 are checked not to have.
"""

import re
from typing import Any

from gateway.capabilities.keywords import LISTS, MAPS, Schema, schemas_within

_BOUNDS = (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum"))
_DRAFT_4 = "draft-04"
_BRACKETS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\]", re.DOTALL)  # an escape, a class, or a `]` on its own


def is_draft_4(schema: Any) -> bool:
    """Tell whether a schema's `$schema` is draft 4. There `exclusiveMinimum` is a boolean, and `id` a name."""
    return isinstance(schema, dict) and _DRAFT_4 in str(schema.get("$schema"))


def as_json_schema(schema: Schema) -> Schema:
    """Translate a schema into JSON Schema. If it has `$schema`, it cannot have `nullable`."""
    if not isinstance(schema, dict):
        return schema
    return _translated(schema, with_bounds=not is_draft_4(schema), with_nullable="$schema" not in schema)


def _translated(node: Schema, *, with_bounds: bool, with_nullable: bool) -> Schema:
    if not isinstance(node, dict):
        return node
    new = dict(node)
    for name, value in node.items():
        inner = {
            key: _translated(each, with_bounds=with_bounds, with_nullable=with_nullable)
            for key, each in schemas_within(name, value)
        }
        if name in MAPS and isinstance(value, dict):
            new[name] = {**value, **inner}
        elif name in LISTS and isinstance(value, list):
            new[name] = [inner.get(place, each) for place, each in enumerate(value)]
        elif None in inner:
            new[name] = inner[None]
    if with_bounds:
        _translate_bounds(new)
    _translate_patterns(new)
    return _or_null(new) if with_nullable and new.get("nullable") is True else new


def _translate_bounds(node: dict[str, Any]) -> None:
    for exclusive, bound in _BOUNDS:
        if isinstance(node.get(exclusive), bool) and node.pop(exclusive) and bound in node:
            node[exclusive] = node.pop(bound)


def _translate_patterns(node: dict[str, Any]) -> None:
    if isinstance(node.get("pattern"), str):
        node["pattern"] = _with_escaped_brackets(node["pattern"])
    if isinstance(node.get("patternProperties"), dict):
        node["patternProperties"] = {
            _with_escaped_brackets(name): one for name, one in node["patternProperties"].items()
        }


def _with_escaped_brackets(pattern: str) -> str:
    return _BRACKETS.sub(lambda found: r"\]" if found[0] == "]" else found[0], pattern) if "]" in pattern else pattern


def _or_null(node: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in node.items() if name != "nullable"}
    if isinstance(rest.get("type"), str):
        enum = {"enum": [*rest["enum"], None]} if isinstance(rest.get("enum"), list) else {}
        return {**rest, "type": [rest["type"], "null"], **enum}
    return {"anyOf": [{"type": "null"}, rest]}
