"""Query strings as discovery queries, and back again as the link to the next page."""

from collections.abc import Iterable
from urllib.parse import urlencode

import msgspec

from protocol import codec
from protocol.discovery import Query
from protocol.errors import InvalidRequest

METADATA_PREFIX = "metadata."
PLAIN = ("clientId", "name", "user", "app", "limit", "after")

_decoder = msgspec.json.Decoder(Query)


def read_query(parameters: Iterable[tuple[str, str]]) -> Query:
    """Read `clientId`, `name`, `user`, `app`, `metadata.KEY`, `limit` and `after`.

    Raises `InvalidRequest` for anything else, for a parameter that stands there twice and for a wrong value.
    """
    plain: dict[str, str | int] = {}
    metadata: dict[str, str] = {}
    for name, value in parameters:
        fields, key = (metadata, name.removeprefix(METADATA_PREFIX)) if _is_metadata(name) else (plain, name)
        if fields is plain and name not in PLAIN:
            raise InvalidRequest(f"unknown query parameter `{name[:64]}`; known are {', '.join(PLAIN)}, metadata.KEY")
        if key in fields:
            raise InvalidRequest(f"the query parameter `{name[:64]}` stands there twice")
        fields[key] = value
    if "limit" in plain:
        plain["limit"] = _number(str(plain["limit"]))
    return codec.decode(_decoder, codec.encode({**plain, "metadata": metadata}))


def refuse_query(parameters: Iterable[tuple[str, str]]) -> None:
    """Raise `InvalidRequest` where a route that takes no query parameter is given one."""
    for name, _ in parameters:
        raise InvalidRequest(f"unknown query parameter `{name[:64]}`; this route takes none")


def next_link(path: str, query: Query, after: str) -> str:
    """Return the `Link` header (RFC 8288) that asks for the page after `after`."""
    plain = [(name, getattr(query, field)) for name, field in (("clientId", "client_id"), *_SAME)]
    metadata = [(METADATA_PREFIX + key, value) for key, value in query.metadata.items()]
    pairs = [(name, value) for name, value in (*plain, *metadata) if value is not None]
    return f'<{path}?{urlencode([*pairs, ("after", after)])}>; rel="next"'


_SAME = tuple((name, name) for name in ("name", "user", "app", "limit"))


def _is_metadata(name: str) -> bool:
    return name.startswith(METADATA_PREFIX) and name != METADATA_PREFIX


def _number(text: str) -> int | str:
    """Return a small whole number as one; anything else as it is, to be refused with its name."""
    return int(text) if len(text) <= 9 and text.isascii() and text.isdigit() else text
