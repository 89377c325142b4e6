"""Converts the query of `GET /api/events` to filters."""

from collections.abc import Iterable
from urllib.parse import parse_qsl

from agent_api.events.filters import MAX_NAMES, MAX_TEXT_CHARS, Filters
from protocol.errors import InvalidRequest
from protocol.ids import check_token
from protocol.subjects import MAX_EVENT_NAME_BYTES

MAX_QUERY_FIELDS = 64
EVENT, CLIENTS, SINCE, LAST_ID = "event", "clients", "since", "lastEventId"
SINGLE = ("clientId", "user", "app", CLIENTS, SINCE, LAST_ID)
CLIENTS_CHOICES = ("true", "false", "only")


def read_query(query: bytes) -> tuple[Filters, str | None]:
    """Return the filters and the position to begin after. Raises `InvalidRequest` that names a wrong parameter.

    `lastEventId` counts before `since`, because browser libraries add it to a URL that may have had `since` before.
    """
    names: list[str] = []
    single: dict[str, str] = {}
    for name, value in _fields(query):
        if name == EVENT:
            names.append(_name(value))
        elif name not in SINGLE:
            raise InvalidRequest(f"unknown query parameter `{name[:64]}`; known are {', '.join((EVENT, *SINGLE))}")
        elif name in single:
            raise InvalidRequest(f"the query parameter `{name}` is repeated")
        else:
            single[name] = value
    if len(names) > MAX_NAMES:
        raise InvalidRequest(f"`event`: at most {MAX_NAMES} names")
    return _filters(tuple(names), single), single.get(LAST_ID) or single.get(SINCE)


def _filters(names: tuple[str, ...], single: dict[str, str]) -> Filters:
    clients = single.get(CLIENTS, "false" if names else "true")
    if clients not in CLIENTS_CHOICES:
        raise InvalidRequest("`clients`: must be true, false or only")
    if clients == "only" and names:
        raise InvalidRequest("`clients`: `only` leaves no room for `event`")
    client_id = single.get("clientId")
    return Filters(
        client_id=None if client_id is None else check_token(client_id, "`clientId`"),
        user=_text(single, "user"),
        app=_text(single, "app"),
        names=() if clients == "only" else names or None,
        changes=clients != "false",
    )


def _fields(query: bytes) -> Iterable[tuple[str, str]]:
    try:
        return parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS
        )
    except ValueError as exc:  # of which UnicodeDecodeError is one
        raise InvalidRequest("the query must be percent-encoded UTF-8 and have few parameters") from exc


def _name(value: str) -> str:
    if not 1 <= len(value.encode()) <= MAX_EVENT_NAME_BYTES:
        raise InvalidRequest(f"`event`: a name must be 1 to {MAX_EVENT_NAME_BYTES} bytes")
    return value


def _text(single: dict[str, str], name: str) -> str | None:
    value = single.get(name)
    if value is not None and len(value) > MAX_TEXT_CHARS:
        raise InvalidRequest(f"`{name}`: at most {MAX_TEXT_CHARS} characters")
    return value
