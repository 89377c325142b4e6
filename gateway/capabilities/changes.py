"""Changes to a registered list of capabilities: new ones are added, and others replaced."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from protocol import codec
from protocol.errors import InvalidFrame


class _Named(msgspec.Struct):
    """The name or id of a capability. In one that a client has just sent, either may have any type."""

    name: Any = None
    id: Any = None


Properties = dict[str, msgspec.Raw]
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_named_decoder = msgspec.json.Decoder(_Named)
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])


def merged(registered: msgspec.Raw, changes: Sequence[msgspec.Raw]) -> list[msgspec.Raw]:
    """Return a list with changes: a capability with a known name or id is replaced, a new one is appended."""
    items = codec.decode(_list_decoder, codec.raw_bytes(registered))
    places = {_key_of(item): place for place, item in enumerate(items)}
    for change in changes:
        place = places.setdefault(_key_of(change), len(items))
        items[place : place + 1] = [change]
    return items


def with_properties(registered: msgspec.Raw, changes: Mapping[str, Properties]) -> list[msgspec.Raw]:
    """Return the list with properties merged into the components with these ids."""
    items = codec.decode(_list_decoder, codec.raw_bytes(registered))
    return [_changed(item, changes) for item in items]


def _changed(item: msgspec.Raw, changes: Mapping[str, Properties]) -> msgspec.Raw:
    ident = codec.decode(_named_decoder, codec.raw_bytes(item)).id
    if not isinstance(ident, str) or ident not in changes:
        return item
    fields = codec.decode(_fields_decoder, codec.raw_bytes(item))
    former = _fields_of(fields.get("properties", codec.EMPTY_OBJECT))
    properties = msgspec.Raw(codec.encode({**former, **changes[ident]}))
    return msgspec.Raw(codec.encode({**fields, "properties": properties}))


def _fields_of(value: msgspec.Raw) -> Properties:
    """Return the fields of an object; for any other value, none."""
    return codec.decode(_fields_decoder, codec.raw_bytes(value)) if codec.is_object(value) else {}


def _key_of(item: msgspec.Raw) -> str:
    """Return the name of a function or the id of a component; for any other value, the value."""
    try:
        named = codec.decode(_named_decoder, codec.raw_bytes(item), InvalidFrame)
    except InvalidFrame:
        return repr(codec.raw_bytes(item))
    return repr(named.id if named.name is None else named.name)
