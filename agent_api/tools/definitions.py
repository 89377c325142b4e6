"""One capability as tools: a function is one, a component one for each of its actions. Pure.

A capability may have a megabyte, so only the parts that a tool has are read, each on its own and within bounds.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from agent_api.tools.names import names_for
from agent_api.tools.schemas import MAX_INPUT_BYTES, InputSchema, input_schema
from agent_api.tools.texts import MAX_TITLE_CHARS, safe_line, safe_text
from protocol import codec
from protocol.errors import InvalidRequest

MAX_SCHEMAS = 2048
MAX_ANNOTATION_BYTES = 16 * 1024
_HINTS = ("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")
_NULL = msgspec.Raw(b"null")
_canonical = msgspec.json.Encoder(order="sorted")
T = TypeVar("T")
D = TypeVar("D")


class _Described(msgspec.Struct, frozen=True):
    """A capability or an action, in parts that are not read yet."""

    type: msgspec.Raw = _NULL
    name: msgspec.Raw = _NULL
    id: msgspec.Raw = _NULL
    title: msgspec.Raw = _NULL
    description: msgspec.Raw = _NULL
    parameters: msgspec.Raw = _NULL
    annotations: msgspec.Raw = _NULL
    actions: msgspec.Raw = _NULL


_NOTHING = _Described()
_described = msgspec.json.Decoder(_Described)
_mappings = msgspec.json.Decoder(dict[str, msgspec.Raw])
_lists = msgspec.json.Decoder(list[msgspec.Raw])
_texts = msgspec.json.Decoder(str)


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


def definitions_of(capability: msgspec.Raw) -> Iterator[ToolDefinition | None]:
    """Go through the tools of a capability in the normal form of `protocol.records`; None if there is no tool."""
    described = _read(capability)
    if _text(described.type) == "component":
        yield from _of_component(described)
        return
    name = _text(described.name)
    if name is not None:
        yield _defined(name, None, described, described)


def _of_component(component: _Described) -> Iterator[ToolDefinition | None]:
    ident = _text(component.id)
    if ident is None:
        return
    for name, action in _actions(component.actions):
        yield None if name is None else _defined(ident, name, action, component)


def _actions(actions: msgspec.Raw) -> Iterator[tuple[str | None, _Described]]:
    """Yield each action of a component. Applications may write them as a list or as an object."""
    kind = bytes(memoryview(actions)[:1])
    if kind == b"{":
        for name, raw in _parts(_mappings, actions, {}).items():
            yield name, _read(raw)
    elif kind == b"[":
        for raw in _parts(_lists, actions, []):
            action = _read(raw)
            yield _text(raw) if action is _NOTHING else _text(action.name), action


def _defined(target: str, action: str | None, described: _Described, capability: _Described) -> ToolDefinition | None:
    found = _input_schema(described.parameters)
    if found is None:
        return None
    description = safe_text(_text(described.description)) or safe_text(_text(capability.description))
    annotations = _annotations(described.annotations)
    title = safe_line(_text(described.title) or annotations.get("title"), MAX_TITLE_CHARS)
    digest = _digest(target, action, title, description, found, annotations)
    return ToolDefinition(target, action, title, description, found.schema, found.wrapped, annotations, digest)


# --- the parts of a capability ---


def _read(raw: msgspec.Raw) -> _Described:
    return _parts(_described, raw, _NOTHING) if codec.is_object(raw) else _NOTHING


def _parts(decoder: msgspec.json.Decoder[T], raw: msgspec.Raw, otherwise: D) -> T | D:
    try:
        return codec.decode(decoder, codec.raw_bytes(raw))
    except InvalidRequest:
        return otherwise


def _text(raw: msgspec.Raw) -> str | None:
    """Return a text, None for any other value."""
    return _parts(_texts, raw, None) if bytes(memoryview(raw)[:1]) == b'"' else None


class _KnownSchemas:
    """The schemas that were asked for last, by the hashes of their originals: many capabilities have the same."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, InputSchema | None] = OrderedDict()

    def of(self, parameters: msgspec.Raw) -> InputSchema | None:
        """Return the schema of a tool for that of a capability's parameters; None if no tool can have it."""
        key = hashlib.sha256(parameters).digest()
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        found = self._known[key] = _made(parameters)
        if len(self._known) > MAX_SCHEMAS:
            self._known.popitem(last=False)
        return found


def _made(parameters: msgspec.Raw) -> InputSchema | None:
    if len(memoryview(parameters)) > MAX_INPUT_BYTES:
        return input_schema({"type": _text(_read(parameters).type)})
    try:
        return input_schema(codec.decode_value(parameters))
    except InvalidRequest:
        return None


_input_schema = _KnownSchemas().of


def _annotations(raw: msgspec.Raw) -> dict[str, Any]:
    """Return the hints of the Model Context Protocol among a capability's annotations."""
    if not codec.is_object(raw) or len(memoryview(raw)) > MAX_ANNOTATION_BYTES:
        return {}
    try:
        given = codec.decode_value(raw)
    except InvalidRequest:
        return {}
    hints = {name: given[name] for name in _HINTS if isinstance(given.get(name), bool)}
    title = safe_line(given.get("title"), MAX_TITLE_CHARS)
    return {"title": title, **hints} if title else hints


def _digest(
    target: str, action: str | None, title: str, description: str, found: InputSchema, annotations: dict[str, Any]
) -> str:
    whole = (target, action, title, description, found.schema, found.wrapped, annotations)
    return hashlib.sha256(_canonical.encode(whole)).hexdigest()
