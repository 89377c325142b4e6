"""Converts a capability to tools: a function is one tool, a component one for each action. Pure."""

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import msgspec

from agent_api.tools.names import names_for
from agent_api.tools.schemas import InputSchema, input_schema
from agent_api.tools.texts import MAX_TITLE_CHARS, safe_line, safe_text
from protocol import codec
from protocol.errors import InvalidRequest

MAX_SCHEMAS = 2048
_HINTS = ("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")
_canonical = msgspec.json.Encoder(order="sorted")


class ToolDefinition(msgspec.Struct, frozen=True, weakref=True):
    """A tool, independent of its clients. Equal tools have the same `digest`.

    If it is `wrapped`, the argument `value` has its parameters.
    """

    target: str
    action: str | None
    title: str
    description: str
    schema: dict[str, Any]
    wrapped: bool
    annotations: dict[str, Any]
    digest: str

    @property
    def names(self) -> tuple[str, ...]:
        """Its possible names, best first."""
        return names_for(self.target, self.action, self.digest)


def definitions_of(capability: msgspec.Raw) -> tuple[ToolDefinition, ...]:
    """Return the tools of a capability in the normal form of `protocol.records`; none if it cannot be read."""
    try:
        value = codec.decode_value(capability, InvalidRequest)
    except InvalidRequest:
        return ()
    if not isinstance(value, dict):
        return ()
    if value.get("type") == "component":
        return tuple(_of_component(value))
    name = value.get("name")
    return tuple(_defined(name, None, value, value)) if isinstance(name, str) else ()


def _of_component(component: dict[str, Any]) -> Iterator[ToolDefinition]:
    ident, actions = component.get("id"), component.get("actions")
    if not isinstance(ident, str):
        return
    for name, action in _actions(actions):
        yield from _defined(ident, name, action, component)


def _actions(actions: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each action of a component, in any of their forms."""
    listed: Iterable[tuple[Any, Any]] = actions.items() if isinstance(actions, dict) else ()
    if isinstance(actions, list):
        listed = ((each.get("name"), each) if isinstance(each, dict) else (each, None) for each in actions)
    for name, action in listed:
        if isinstance(name, str):
            yield name, action if isinstance(action, dict) else {}


def _defined(
    target: str, action: str | None, described: dict[str, Any], capability: dict[str, Any]
) -> Iterator[ToolDefinition]:
    found = _input_schema(codec.encode(described.get("parameters")))
    if found is None:
        return
    description = safe_text(described.get("description")) or safe_text(capability.get("description"))
    annotations = _annotations(described.get("annotations"))
    title = safe_line(described.get("title") or annotations.get("title"), MAX_TITLE_CHARS)
    digest = _digest(target, action, title, description, found, annotations)
    yield ToolDefinition(target, action, title, description, found.schema, found.wrapped, annotations, digest)


@lru_cache(maxsize=MAX_SCHEMAS)
def _input_schema(parameters: bytes) -> InputSchema | None:
    """Return the tool's schema for a capability's, given as JSON. Cached, because many capabilities have the same."""
    return input_schema(codec.decode_value(parameters, InvalidRequest))


def _annotations(given: Any) -> dict[str, Any]:
    """Return the hints of the Model Context Protocol among a capability's annotations."""
    if not isinstance(given, dict):
        return {}
    hints = {name: given[name] for name in _HINTS if isinstance(given.get(name), bool)}
    title = safe_line(given.get("title"), MAX_TITLE_CHARS)
    return {"title": title, **hints} if title else hints


def _digest(
    target: str, action: str | None, title: str, description: str, found: InputSchema, annotations: dict[str, Any]
) -> str:
    whole = (target, action, title, description, found.schema, found.wrapped, annotations)
    return hashlib.sha256(_canonical.encode(whole)).hexdigest()
