"""Converts schemas of capabilities for model providers: JSON Schema 2020-12 with an object at the root.

One odd schema makes a host refuse a whole list of tools, so the output is valid for any input. It may be looser than
the input, because the gateway checks parameters against the original anyway:

- Keywords that are not JSON Schema's are left out. One of them, `x-mcp-header`, would make clients copy an argument
  into a header that proxies log. Texts within are cleaned like descriptions.
- References that leave the schema, or lead nowhere, are left out. Nobody ever fetches anything.
- Keywords of older drafts (`items` as a list, `exclusiveMinimum: true`, `nullable`) are translated to 2020-12.
- Providers refuse a root that combines schemas. It becomes the property `value` of an object.
- If the result is still not a schema, or is too large, it becomes `{"type": "object"}`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote

from agent_api.tools.texts import hides, safe_line, safe_text
from protocol import codec

MAX_DEPTH = 64
MAX_BYTES = 16 * 1024
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
_BOUNDS = (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum"))
_ANYTHING: dict[str, Any] = {"type": "object"}


class InputSchema(NamedTuple):
    """The schema of a tool's arguments. If it is `wrapped`, its property `value` has the parameters."""

    schema: dict[str, Any]
    wrapped: bool = False


def input_schema(given: Any) -> InputSchema | None:
    """Return the tool's schema for the schema of a capability's parameters, or None if those cannot be an object."""
    root = _followed(_without_lost_references(_cleaned(given, 0)))
    if not _takes_objects(root):
        return None
    found = _wrapped(root) if _COMBINING & root.keys() else InputSchema(_as_object(root))
    return found if _is_sound(found.schema) else InputSchema(_ANYTHING)


def _cleaned(node: Any, depth: int) -> dict[str, Any]:
    """Return a schema with the known keywords only, each in the form of draft 2020-12."""
    if node is False:
        return {"not": {}}
    if not isinstance(node, dict) or depth > MAX_DEPTH:
        return {}
    kept: dict[str, Any] = {}
    for name, value in node.items():
        _keep(kept, name, value, depth)
    _translate(kept, node)
    return kept


def _keep(kept: dict[str, Any], name: str, value: Any, depth: int) -> None:
    if name in _DATA or name in _PLAIN:
        if not hides(value):  # a cleaned `enum` would have values that the application refuses
            kept[name] = value
    elif name in _MAPS and isinstance(value, dict):
        kept[name] = {key: _cleaned(each, depth + 1) for key, each in value.items() if not hides(key)}
    elif (name in _LISTS or name == "items") and isinstance(value, list):
        kept["prefixItems" if name == "items" else name] = [_cleaned(each, depth + 1) for each in value]
    elif name in _SINGLE and isinstance(value, dict | bool):
        kept[name] = value if isinstance(value, bool) else _cleaned(value, depth + 1)
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
        target = _target(root, reference)
        return reference if isinstance(target, dict) and id(target) in known else None

    return _with_references(root, keep)


def _schemas_in(root: dict[str, Any]) -> list[dict[str, Any]]:
    found, left = [], [root]
    while left:
        node = left.pop()
        found.append(node)
        left.extend(each for name in node.keys() & _NESTED for each in _inner(node[name], name))
    return found


def _inner(value: Any, name: str) -> list[dict[str, Any]]:
    if name in _MAPS:
        return list(value.values())
    return [each for each in (value if name in _LISTS else [value]) if isinstance(each, dict)]


def _with_references(node: dict[str, Any], change: Callable[[str], str | None]) -> dict[str, Any]:
    """Return a cleaned schema with changed references, and without those that become None."""
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


def _target(root: Any, reference: str) -> Any:
    """Return the target of a JSON Pointer within a schema (RFC 6901 section 6), or None if there is none."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    node = root
    for part in unquote(reference).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        try:
            node = node[int(key)] if isinstance(node, list) else node[key]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return node


def _followed(root: dict[str, Any]) -> dict[str, Any]:
    """Replace a root that is only a reference by its target, because msgspec and others write roots so."""
    seen = 0
    while (
        "$ref" in root and root.keys() <= {"$ref", "$defs", "definitions", "title", "description"} and seen < MAX_DEPTH
    ):
        target = _target(root, root["$ref"])
        root = {**{name: root[name] for name in ("$defs", "definitions") if name in root}, **target}
        seen += 1
    return root


def _takes_objects(root: dict[str, Any]) -> bool:
    kinds = root.get("type", "object")
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
