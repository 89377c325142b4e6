"""A command's outcome as the result of a tool: text for the model, structure for its host, errors as results.

Results are right for the revision that is spoken, because the library does not see them: it would hold the event loop
for 100 ms to check a megabyte. An application's answer stays JSON, except for the parts that have to be looked into.
"""

from typing import Any

import msgspec

from protocol import codec
from protocol.errors import BridgeError, ErrorBody, InvalidRequest

MODERN = "2026-07-28"
WITH_AUDIO, WITH_LINKS = "2025-03-26", "2025-06-18"
WITH_STRUCTURE = "2025-06-18"
_NULL = msgspec.Raw(b"null")
# The texts that an item of content has to have, and since which revision it exists.
_ITEMS: dict[str, tuple[tuple[str, ...], str]] = {
    "text": (("text",), ""),
    "image": (("data", "mimeType"), ""),
    "audio": (("data", "mimeType"), WITH_AUDIO),
    "resource_link": (("uri", "name"), WITH_LINKS),
}


def value_result(raw: msgspec.Raw, version: str) -> dict[str, Any]:
    """Return an application's answer as a result. An answer that has the shape of a tool's result is passed on.

    A megabyte takes 60 ms: have another thread do it.
    """
    shaped = _passed_on(raw, version)
    if shaped is not None:
        return shaped
    return {"content": [_text(_text_of(raw))], **_structured(raw, version)}


def error_result(error: BridgeError) -> dict[str, Any]:
    """Return an error for the model to read: the sentence, our code, whether a repetition may help, the details.

    Revisions that know no structure ignore it.
    """
    body: ErrorBody = error.body()
    told = f"{body.code}: {body.message}"
    choices = body.details.get("clients") if isinstance(body.details, dict) else None
    if choices:
        told += f"\n{codec.encode(choices).decode()}"
    structure = msgspec.to_builtins(body)
    return {"isError": True, "content": [_text(told)], "structuredContent": {"error": structure}}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _text_of(raw: msgspec.Raw) -> str:
    """Return an answer for the model: a text as it is, anything else as JSON."""
    data = codec.raw_bytes(raw)
    if data.startswith(b'"'):
        try:
            text: str = codec.decode_value(raw)
        except InvalidRequest:
            return data.decode(errors="replace")
        return text
    return data.decode(errors="replace")


def _structured(raw: msgspec.Raw, version: str) -> dict[str, Any]:
    """Return the structure of a value; before 2026-07-28 it had to be an object, and before 2025-06-18 there was none.

    A value that clients may not be able to read, because of its depth or its numbers, is told by its text alone.
    """
    fits = codec.is_object(raw) if version < MODERN else bytes(memoryview(raw)[:1]) not in (b'"', b"n")
    if not fits or version < WITH_STRUCTURE:
        return {}
    try:
        codec.require_shallow(codec.decode_value(raw), "the result")
    except InvalidRequest:
        return {}
    return {"structuredContent": raw}


class _Shaped(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A result in MCP's own shape, as pages with WebMCP give it."""

    content: list[msgspec.Raw]
    structured_content: msgspec.Raw = _NULL
    is_error: bool = False
    meta: msgspec.Raw = msgspec.field(default=_NULL, name="_meta")


_shaped = msgspec.json.Decoder(_Shaped)


def _passed_on(raw: msgspec.Raw, version: str) -> dict[str, Any] | None:
    """Return an answer that is a result already; None if it is not quite that."""
    if not codec.is_object(raw):
        return None
    try:
        found = _shaped.decode(raw)
        items = [_item(codec.decode_value(item), version) for item in found.content]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidRequest):
        return None
    if None in items:
        return None
    result: dict[str, Any] = {"content": items, **_structured(found.structured_content, version)}
    return result | {"isError": True} if found.is_error else result


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
