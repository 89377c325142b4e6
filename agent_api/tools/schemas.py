"""Converts schemas of capabilities for model providers: JSON Schema 2020-12 with an object at the root.

One odd schema makes a host refuse a whole list of tools, so the output is valid for any input. It may be looser than
the input, because the gateway checks parameters against the original anyway:

- Keywords that are not JSON Schema's are left out. One of them, `x-mcp-header`, would make clients copy an argument
  into a header that proxies log. Texts within are cleaned like descriptions.
- References that leave the schema, or lead nowhere, are left out. Nobody ever fetches anything. The gateway has refused
  those that lead back to themselves without a step into the value.
- The words of older drafts (`items` as a list, `exclusiveMinimum: true`, `nullable`) are those of 2020-12.
- A root that combines schemas, which providers refuse there, is the property `value` of an object.
- What is still no schema, or too large, is `{"type": "object"}`.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote

from agent_api.tools.texts import hides, safe_line, safe_text
from protocol import codec

MAX_DEPTH = 64
MAX_BYTES = 16 * 1024
MAX_INPUT_BYTES = 64 * 1024
MAX_INNER = 2_000  # schemas within one; cleaning takes 4 us for each, and one of 16 KiB has some hundreds
VALUE = "value"
_DATA = frozenset({"default", "const", "examples", "enum"})
_PLAIN = frozenset(
    {
        *("type", "multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum", "maxLength", "minLength"),
        *("pattern", "maxItems", "minItems", "uniqueItems", "maxContains", "minContains", "maxProperties"),
        *("minProperties", "required", "dependentRequired", "format", "contentEncoding", "contentMediaType"),
        *("deprecated", "readOnly", "writeOnly"),
    }
)
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_SINGLE = frozenset(
    {
        *("additionalProperties", "propertyNames", "items", "contains", "not", "if", "then", "else"),
        *("unevaluatedItems", "unevaluatedProperties"),
    }
)
_NESTED = _MAPS | _LISTS | _SINGLE
# Providers refuse these at the root; the root of a wrapped schema has none of them.
_COMBINING = frozenset({"$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "enum", "const"})
_NOT_AT_ROOT = frozenset({"propertyNames", "maxProperties", "default", "examples", "title", "description"})
_DEFINITIONS = ("$defs", "definitions")
_AROUND_REFERENCE = frozenset({"$ref", "title", "description", *_DEFINITIONS})
_BOUNDS = (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum"))
_ANYTHING: dict[str, Any] = {"type": "object"}
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")  # RFC 6901 section 4


class InputSchema(NamedTuple):
    """The schema of a tool's arguments. If it is `wrapped`, its property `value` has the parameters."""

    schema: dict[str, Any]
    wrapped: bool = False


def input_schema(given: Any) -> InputSchema | None:
    """Return the schema of a tool for the schema of a capability's parameters; None if that takes no object."""
    try:
        root = _Cleaning().cleaned(given, 0)
    except _TooManySchemas:
        return InputSchema(_ANYTHING) if _takes_objects(given) else None
    root = _followed(_without_lost_references(root))
    if not _takes_objects(root):
        return None
    found = _wrapped(root) if _COMBINING & root.keys() else InputSchema(_as_object(root))
    return found if _is_sound(found.schema) else InputSchema(_ANYTHING)


class _TooManySchemas(Exception):
    """A schema has more schemas within than a tool's may have."""


class _Cleaning:
    """The cleaning of one schema, with the number of the schemas that were found within."""

    def __init__(self) -> None:
        self._count = 0

    def cleaned(self, node: Any, depth: int) -> dict[str, Any]:
        """Return a schema with the keywords that are known, each as its draft 2020-12 has it."""
        self._count += 1
        if self._count > MAX_INNER:
            raise _TooManySchemas
        if node is False:
            return {"not": {}}
        if not isinstance(node, dict) or depth > MAX_DEPTH:
            return {}
        kept: dict[str, Any] = {}
        for name, value in node.items():
            self._keep(kept, name, value, depth + 1)
        _translate(kept, node)
        return kept

    def _keep(self, kept: dict[str, Any], name: str, value: Any, depth: int) -> None:
        if name in _DATA or name in _PLAIN:
            if not hides(value):  # cleaned, an `enum` would name values that the application refuses
                kept[name] = value
        elif name in _MAPS and isinstance(value, dict):
            kept[name] = {key: self.cleaned(each, depth) for key, each in value.items() if not hides(key)}
        elif (name in _LISTS or name == "items") and isinstance(value, list):
            kept["prefixItems" if name == "items" else name] = [self.cleaned(each, depth) for each in value]
        elif name in _SINGLE and isinstance(value, dict | bool):
            kept[name] = value if isinstance(value, bool) else self.cleaned(value, depth)
        elif name == "description":
            kept[name] = safe_text(value)
        elif name == "title":
            kept[name] = safe_line(value)
        elif name == "$ref" and isinstance(value, str):
            kept[name] = value


def _translate(kept: dict[str, Any], node: dict[str, Any]) -> None:
    """Translate older drafts and OpenAPI 3.0 into 2020-12."""
    for exclusive, bound in _BOUNDS:
        if isinstance(kept.get(exclusive), bool) and kept.pop(exclusive) and bound in kept:
            kept[exclusive] = kept.pop(bound)
    if node.get("nullable") is True and isinstance(kept.get("type"), str):
        kept["type"] = [kept["type"], "null"]
        if isinstance(kept.get("enum"), list) and None not in kept["enum"]:
            kept["enum"] = [*kept["enum"], None]


def _without_lost_references(root: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without references that lead nowhere."""
    known = {id(node) for node in _schemas_in(root)}

    def keep(reference: str) -> str | None:
        return reference if id(_target(root, reference)) in known else None

    return _with_references(root, keep)


def _schemas_in(root: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a cleaned schema and all schemas within."""
    found = [root]
    for node in found:  # which grows meanwhile
        for name in node.keys() & _NESTED:
            found.extend(_inner(node[name], name))
    return found


def _inner(value: Any, name: str) -> list[dict[str, Any]]:
    """Return the schemas directly within a keyword's value."""
    if name in _MAPS:
        return list(value.values())
    return [each for each in (value if name in _LISTS else [value]) if isinstance(each, dict)]


def _with_references(node: dict[str, Any], change: Callable[[str], str | None]) -> dict[str, Any]:
    """Return a schema with each `$ref` replaced by `change($ref)`, or removed if that is None."""
    new: dict[str, Any] = {}
    for name, value in node.items():
        if name == "$ref":
            reference = change(value)
            if reference is not None:
                new[name] = reference
        elif name in _MAPS:
            new[name] = {key: _with_references(each, change) for key, each in value.items()}
        elif name in _LISTS:
            new[name] = [_with_references(each, change) for each in value]
        elif name in _SINGLE and isinstance(value, dict):
            new[name] = _with_references(value, change)
        else:
            new[name] = value
    return new


def _target(root: dict[str, Any], reference: str) -> Any:
    """Return the target of a JSON Pointer within a schema (RFC 6901 section 6), None if there is none."""
    beginning, *parts = reference.split("/")
    if beginning != "#":
        return None
    node: Any = root
    for part in map(unquote, parts):
        node = _member(node, part.replace("~1", "/").replace("~0", "~"))
    return node


def _member(node: Any, key: str) -> Any:
    """Return a member of an object or an array by its key in a pointer, None if there is none."""
    if isinstance(node, list):
        return node[int(key)] if _INDEX.fullmatch(key) and int(key) < len(node) else None
    return node.get(key) if isinstance(node, dict) else None


def _followed(root: dict[str, Any]) -> dict[str, Any]:
    """Replace a root that is only a reference by its target, because msgspec and others write roots so."""
    for _ in range(MAX_DEPTH):
        if "$ref" not in root or not root.keys() <= _AROUND_REFERENCE:
            break
        definitions = {name: root[name] for name in _DEFINITIONS if name in root}
        root = definitions | _target(root, root["$ref"])
    return root


def _takes_objects(root: Any) -> bool:
    kinds = root.get("type", "object") if isinstance(root, dict) else "object"
    return "object" in kinds if isinstance(kinds, list) else kinds == "object" or not isinstance(kinds, str)


def _as_object(root: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", **{name: value for name, value in root.items() if name not in {*_NOT_AT_ROOT, "type"}}}


def _wrapped(root: dict[str, Any]) -> InputSchema:
    moved = _with_references(root, lambda reference: f"#/properties/{VALUE}{reference[1:]}")
    properties = {VALUE: moved}
    return InputSchema(
        {"type": "object", "properties": properties, "required": [VALUE], "additionalProperties": False}, wrapped=True
    )


def _is_sound(schema: dict[str, Any]) -> bool:
    import jsonschema_rs  # 4 MB, for tenants whose agents ask for tools

    try:
        return len(codec.encode(schema)) <= MAX_BYTES and jsonschema_rs.meta.is_valid(schema)
    except (ValueError, TypeError, RecursionError, OverflowError):  # a value that JSON cannot express
        return False
