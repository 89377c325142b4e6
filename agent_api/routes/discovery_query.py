"""Converts query strings to discovery queries, and back for the link to the next page."""

from collections.abc import Iterable
from urllib.parse import urlencode

import msgspec

from protocol import codec
from protocol.discovery import Query
from protocol.errors import InvalidRequest

METADATA_PREFIX = "metadata."
FIELDS = {
    "clientId": "client_id",
    "name": "name",
    "user": "user",
    "app": "app",
    "tags": "tags",
    "componentType": "component_type",
    "authLevel": "auth_level",
    "path": "path",
    "limit": "limit",
    "after": "after",
}

_decoder = msgspec.json.Decoder(Query)


def read_query(parameters: Iterable[tuple[str, str]]) -> Query:
    """Decode the parameters in `FIELDS` and `metadata.KEY`. `tags` are separated by commas.

    Raises `InvalidRequest` for any other parameter, a repeated one, and a wrong value.
    """
    plain: dict[str, str | int | list[str]] = {}
    metadata: dict[str, str] = {}
    for name, value in parameters:
        key = name.removeprefix(METADATA_PREFIX)
        if name in plain or (key != name and key in metadata):
            raise InvalidRequest(f"the query parameter `{name[:64]}` is repeated")
        if name in FIELDS:
            plain[name] = _value(name, value)
        elif key and key != name:
            metadata[key] = value
        else:
            raise InvalidRequest(f"unknown query parameter `{name[:64]}`; known are {', '.join(FIELDS)}, metadata.KEY")
    return codec.decode(_decoder, codec.encode({**plain, "metadata": metadata}))


def refuse_query(parameters: Iterable[tuple[str, str]]) -> None:
    """Raise `InvalidRequest` if a route without query parameters gets one."""
    for name, _ in parameters:
        raise InvalidRequest(f"unknown query parameter `{name[:64]}`; this route takes none")


def next_link(path: str, query: Query, after: str) -> str:
    """Return the `Link` header (RFC 8288) that asks for the page after `after`."""
    plain = {name: getattr(query, field) for name, field in FIELDS.items()}
    plain |= {"tags": ",".join(query.tags) or None, "after": after}
    metadata = {METADATA_PREFIX + key: value for key, value in query.metadata.items()}
    parameters = {name: value for name, value in (plain | metadata).items() if value is not None}
    return f'<{path}?{urlencode(parameters)}>; rel="next"'


def _value(name: str, text: str) -> str | int | list[str]:
    match name:
        case "limit":
            return _number(text)
        case "tags":
            return text.split(",") if text else []
        case _:
            return text


def _number(text: str) -> int | str:
    """Convert a small whole number. Return any other text unchanged; the decoder then refuses it with its name."""
    return int(text) if len(text) <= 9 and text.isascii() and text.isdigit() else text
