"""Query strings as discovery queries, and back again as the link to the next page."""

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
    "limit": "limit",
    "after": "after",
}

_decoder = msgspec.json.Decoder(Query)


def read_query(parameters: Iterable[tuple[str, str]]) -> Query:
    """Read `clientId`, `name`, `user`, `app`, `metadata.KEY`, `limit` and `after`.

    Raises `InvalidRequest` for anything else, for a parameter that stands there twice and for a wrong value.
    """
    plain: dict[str, str | int] = {}
    metadata: dict[str, str] = {}
    for name, value in parameters:
        key = name.removeprefix(METADATA_PREFIX)
        if name in plain or (key != name and key in metadata):
            raise InvalidRequest(f"the query parameter `{name[:64]}` stands there twice")
        if name in FIELDS:
            plain[name] = _number(value) if name == "limit" else value
        elif key and key != name:
            metadata[key] = value
        else:
            raise InvalidRequest(f"unknown query parameter `{name[:64]}`; known are {', '.join(FIELDS)}, metadata.KEY")
    return codec.decode(_decoder, codec.encode({**plain, "metadata": metadata}))


def refuse_query(parameters: Iterable[tuple[str, str]]) -> None:
    """Raise `InvalidRequest` where a route that takes no query parameter is given one."""
    for name, _ in parameters:
        raise InvalidRequest(f"unknown query parameter `{name[:64]}`; this route takes none")


def next_link(path: str, query: Query, after: str) -> str:
    """Return the `Link` header (RFC 8288) that asks for the page after `after`."""
    plain = {name: getattr(query, field) for name, field in FIELDS.items()} | {"after": after}
    metadata = {METADATA_PREFIX + key: value for key, value in query.metadata.items()}
    parameters = {name: value for name, value in (plain | metadata).items() if value is not None}
    return f'<{path}?{urlencode(parameters)}>; rel="next"'


def _number(text: str) -> int | str:
    """Return a small whole number as one; anything else as it is, to be refused with its name."""
    return int(text) if len(text) <= 9 and text.isascii() and text.isdigit() else text
