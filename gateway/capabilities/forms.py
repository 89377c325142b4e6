"""Brings the various forms of a capability into one: other names for our fields, and other types.

A capability with a near miss of a field that restricts its use is refused, because it would be open otherwise. So is
one with a near miss of a schema's field, because nothing would be checked.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from protocol import codec
from protocol.errors import InvalidFrame
from protocol.field_names import ALIASES, near_miss, plain
from protocol.records import MAX_NAME_CHARS, with_type

PARAMETERS = ("inputSchema", "input_schema")
RESULT = ("outputSchema", "output_schema", "returnSchema", "return_schema")
RATE_LIMIT: Mapping[str, tuple[str, ...]] = {"limit": ("maxRequests",), "perSeconds": ("windowSeconds",)}
RESTRICTIONS = ("permissions", "approval", "rateLimit", "authLevel")
_STEMS = {"permission": "permissions", "approval": "approval", "ratelimit": "rateLimit", "authlevel": "authLevel"}
_FIELDS = ("type", "name", "id", "description", "title", "tags", "parameters", "result", "annotations", "actions")
_KNOWN = frozenset((*_FIELDS, "componentType", "properties", *PARAMETERS, *RESULT, *RESTRICTIONS))
_GUARDS = (*RESTRICTIONS, "parameters", "inputSchema")
_OTHER_PARAMETERS = frozenset((*ALIASES, "schema"))
# Stricter than for commands, because `approved` may be the application's own field, not a misspelt `approval`.
_LETTERS_A_FAULT = 5
_RATE_ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("max", "requests", "calls", "count", "maxcalls"), "maxRequests"),
    **dict.fromkeys(("seconds", "per", "perminute", "perhour", "perms", "minutes"), "perSeconds"),
    **dict.fromkeys(("window", "windowms", "interval", "intervalms", "period", "periodseconds"), "windowSeconds"),
}
_UNKNOWN_FIELD_NODES = 10  # the cost of comparing a name with all known ones
MAX_FIELDS = 256

Spend = Callable[[float], None]


def normal_form(item: msgspec.Raw, spend: Spend) -> msgspec.Raw:
    """Return a capability in the normal form of `records`. One that has this form already is passed on unchanged.

    Report to `spend` the cost beyond reading, in nodes of a schema. Raises `InvalidFrame` that names the field.
    """
    given = codec.decode_value(item, InvalidFrame)
    codec.require_shallow(given, "the capability", InvalidFrame)
    value = with_type(given)
    spend(_UNKNOWN_FIELD_NODES * _require_no_near_miss(value, ""))
    value = _with_schemas(_with_component_type(value))
    if isinstance(value.get("rateLimit"), dict):
        value = _with(value, "rateLimit", _rate_limit(value["rateLimit"]))
    if value.get("type") == "component":
        value = _component(value, spend)
    return item if value is given else msgspec.Raw(codec.encode(value))


def name_of(item: msgspec.Raw) -> str:
    """Return the name or id of an unusable capability, if it has one."""
    try:
        value = codec.decode_value(item, InvalidFrame)
    except InvalidFrame:
        return ""
    found = (value.get("name") or value.get("id")) if isinstance(value, dict) else value
    return found[:MAX_NAME_CHARS] if isinstance(found, str) else ""


def _with_component_type(value: dict[str, Any]) -> dict[str, Any]:
    """Return a component for any other type with actions: `type: "button"` becomes its `componentType`."""
    kind = value.get("type")
    if kind in ("function", "component") or not isinstance(kind, str) or "actions" not in value:
        return value
    if value.get("componentType", kind) != kind:
        raise InvalidFrame("`type` and `componentType` contradict each other")
    return {**value, "type": "component", "componentType": kind}


def _component(value: dict[str, Any], spend: Spend) -> dict[str, Any]:
    """Return a component with our names. Raises `InvalidFrame` for a schema that would check none of its actions."""
    if value.get("parameters") is not None:
        raise InvalidFrame("`parameters`: belongs to each action of a component, not to the component")
    return _with(value, "actions", _actions(value["actions"], spend)) if "actions" in value else value


def _with_schemas(value: dict[str, Any]) -> dict[str, Any]:
    return _renamed(_renamed(value, "parameters", PARAMETERS), "result", RESULT)


def _rate_limit(value: dict[str, Any]) -> dict[str, Any]:
    known = sorted({*RATE_LIMIT, *(alias for aliases in RATE_LIMIT.values() for alias in aliases)})
    for name in value.keys() - known:
        if len(value) > MAX_FIELDS or near_miss(name, known, _RATE_ALIASES):
            raise InvalidFrame(f"`rateLimit.{name[:40]}`: there is no such field; known are {', '.join(known)}")
    for name, aliases in RATE_LIMIT.items():
        value = _renamed(value, name, aliases)
    return value


def _actions(actions: Any, spend: Spend) -> Any:
    """Return the actions of a component, each with its `parameters`. Malformed actions are left to the decoder."""
    if isinstance(actions, dict):
        new = {name: _action(action, name, spend) for name, action in actions.items()}
        return actions if all(new[name] is actions[name] for name in new) else new
    if isinstance(actions, list):
        listed = [_action(action, str(place), spend) for place, action in enumerate(actions)]
        return actions if all(new is old for new, old in zip(listed, actions, strict=True)) else listed
    return actions


def _action(action: Any, name: str, spend: Spend) -> Any:
    if not isinstance(action, dict):
        return action
    where = f"actions[{name[:40]}]."
    for restriction in RESTRICTIONS:
        if restriction in action:
            raise InvalidFrame(f"`{where}{restriction}`: belongs to a component, not to one of its actions")
    spend(_UNKNOWN_FIELD_NODES * _require_no_near_miss(action, where))
    return _with_schemas(action)


def _renamed(value: dict[str, Any], name: str, aliases: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields with aliases replaced by our names."""
    present = [alias for alias in (name, *aliases) if value.get(alias) is not None]
    if not any(alias in value for alias in aliases):
        return value
    if any(value[alias] != value[present[0]] for alias in present):
        raise InvalidFrame(f"`{present[0]}` and `{present[-1]}` contradict each other")
    rest = {field: inner for field, inner in value.items() if field != name and field not in aliases}
    return {**rest, name: value[present[0]]} if present else rest


def _with(value: dict[str, Any], name: str, inner: Any) -> dict[str, Any]:
    return value if value[name] is inner else {**value, name: inner}


def _require_no_near_miss(value: dict[str, Any], where: str) -> int:
    """Raise `InvalidFrame` for a near miss of a restricting field. Return the number of unknown fields."""
    unknown = list(_unknown(value))
    if len(unknown) > MAX_FIELDS:
        raise InvalidFrame(f"more than {MAX_FIELDS} unknown fields")
    for name in unknown:
        meant = _meant(name)
        if meant is None and name in _OTHER_PARAMETERS and isinstance(value[name], dict):
            meant = "parameters"
        if meant is not None:
            raise InvalidFrame(f"`{where}{name[:40]}`: there is no such field; did you mean `{meant}`?")
    return len(unknown)


def _unknown(value: dict[str, Any]) -> Iterator[str]:
    return (name for name in value if name not in _KNOWN)


@lru_cache(maxsize=1024)
def _meant(name: str) -> str | None:
    """Return the field that a name nearly is, or a restricting field that is a part of the name."""
    if len(name) > MAX_NAME_CHARS:
        return None
    written = plain(name)
    for stem, restriction in _STEMS.items():
        if stem in written:
            return restriction
    return near_miss(name, _GUARDS, {}, _LETTERS_A_FAULT)
