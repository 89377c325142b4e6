"""Converts a command's outcome to a tool's result: text for the model, structure for its host, errors as results."""

from typing import Any

import msgspec

from protocol import codec
from protocol.errors import BridgeError, ErrorBody, InvalidRequest, from_body
from protocol.messages import CommandResponse

MODERN = "2026-07-28"
WITH_AUDIO, WITH_LINKS = "2025-03-26", "2025-06-18"
_SHAPE = frozenset({"content", "structuredContent", "isError", "_meta"})
# The required texts of each kind of content, and the first revision that has it.
_ITEMS: dict[str, tuple[tuple[str, ...], str]] = {
    "text": (("text",), ""),
    "image": (("data", "mimeType"), ""),
    "audio": (("data", "mimeType"), WITH_AUDIO),
    "resource_link": (("uri", "name"), WITH_LINKS),
}


def result_of(response: CommandResponse, version: str) -> dict[str, Any]:
    """Return the result of a call for a client of this revision of the protocol."""
    if response.error is not None:
        return error_result(from_body(response.error))
    return value_result(response.value(), version)


def value_result(raw: msgspec.Raw, version: str) -> dict[str, Any]:
    """Return an application's answer as a result. An answer that has the shape of a tool's result is passed on."""
    try:
        value = codec.decode_value(raw)
    except InvalidRequest:  # a number that Python cannot express
        return {"content": [_text(codec.raw_bytes(raw).decode(errors="replace"))]}
    shaped = _passed_on(value, version)
    if shaped is not None:
        return shaped
    text = value if isinstance(value, str) else codec.raw_bytes(raw).decode(errors="replace")
    return {"content": [_text(text)], **_structured(value, version)}


def error_result(error: BridgeError) -> dict[str, Any]:
    """Return an error for the model to read: the sentence, our code, whether a repetition may help, the details."""
    body: ErrorBody = error.body()
    told = f"{body.code}: {body.message}"
    choices = body.details.get("clients") if isinstance(body.details, dict) else None
    if choices:
        told += f"\n{codec.encode(choices).decode()}"
    structure = msgspec.to_builtins(body)
    return {"isError": True, "content": [_text(told)], "structuredContent": {"error": structure}}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _structured(value: Any, version: str) -> dict[str, Any]:
    """Return the structure of a value; before 2026-07-28 it had to be an object.

    A value that is nested more deeply than the library writes is told by its text alone.
    """
    try:
        codec.require_shallow(value, "the result")
    except InvalidRequest:
        return {}
    if isinstance(value, dict) or (version >= MODERN and value is not None and not isinstance(value, str)):
        return {"structuredContent": value}
    return {}


def _passed_on(value: Any, version: str) -> dict[str, Any] | None:
    """Return an answer that has MCP's own form, as from pages with WebMCP, or None if it has not exactly that form."""
    if not isinstance(value, dict) or not value.keys() <= _SHAPE or not isinstance(value.get("content"), list):
        return None
    items = [_item(item, version) for item in value["content"]]
    failed, structure = value.get("isError", False), value.get("structuredContent")
    if None in items or not isinstance(failed, bool):
        return None
    result: dict[str, Any] = {"content": items, **_structured(structure, version)}
    return result | {"isError": True} if failed else result


def _item(item: Any, version: str) -> dict[str, Any] | None:
    if not isinstance(item, dict):
        return None
    kind = item.get("type")
    if kind == "resource":
        return _resource(item.get("resource"))
    if not isinstance(kind, str) or kind not in _ITEMS:
        return None
    fields, since = _ITEMS[kind]
    if any(not isinstance(item.get(name), str) for name in fields):
        return None
    if version < since:
        return _text(codec.encode({name: item[name] for name in fields}).decode())
    return {"type": kind, **{name: item[name] for name in fields}}


def _resource(resource: Any) -> dict[str, Any] | None:
    if not isinstance(resource, dict):
        return None
    kept = {name: resource[name] for name in ("uri", "mimeType", "text", "blob") if isinstance(resource.get(name), str)}
    if "uri" not in kept or ("text" in kept) == ("blob" in kept):
        return None
    return {"type": "resource", "resource": kept}
