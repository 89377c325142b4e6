"""The query of `GET /api/audit`, and back again as the link to the next page."""

from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlencode

from protocol.audit import SUCCESS, AuditFilter, instant
from protocol.errors import Code, InvalidRequest
from protocol.ids import check_token
from protocol.runtime.streams.positions import Position, parse_position
from protocol.subjects import NO_CLIENT

DEFAULT_LIMIT, MAX_LIMIT = 100, 1000
MAX_TEXT_CHARS = 1024
OUTCOMES = (SUCCESS, *(code.value for code in Code))
AFTER, LAST_ID = "after", "lastEventId"  # some libraries use the second one to resume
FIELDS = ("clientId", "agent", "target", "outcome", "since", "until", "limit", AFTER, LAST_ID)


class AuditQuery(NamedTuple):
    """The query parameters. `after` is the id of the last record that the reader has."""

    wanted: AuditFilter
    limit: int
    after: Position | None


def read_query(parameters: Iterable[tuple[str, str]]) -> AuditQuery:
    """Decode the query. Raises `InvalidRequest` that names a parameter which is unknown, repeated or wrong."""
    given: dict[str, str] = {}
    for name, value in parameters:
        if name not in FIELDS:
            raise InvalidRequest(f"unknown query parameter `{name[:64]}`; known are {', '.join(FIELDS)}")
        if name in given:
            raise InvalidRequest(f"the query parameter `{name}` is repeated")
        if len(value) > MAX_TEXT_CHARS:
            raise InvalidRequest(f"`{name}`: at most {MAX_TEXT_CHARS} characters")
        given[name] = value
    wanted = AuditFilter(
        client_id=_client(given.get("clientId")),
        agent=given.get("agent"),
        target=given.get("target"),
        outcome=_outcome(given.get("outcome")),
        since=instant(given["since"], "`since`") if "since" in given else None,
        until=instant(given["until"], "`until`") if "until" in given else None,
    )
    return AuditQuery(wanted, _limit(given.get("limit")), _position(given, LAST_ID) or _position(given, AFTER))


def next_link(path: str, parameters: Iterable[tuple[str, str]], after: Position) -> str:
    """Return the `Link` header (RFC 8288) for the page of records older than `after`."""
    kept = [(name, value) for name, value in parameters if name not in (AFTER, LAST_ID)]
    return f'<{path}?{urlencode([*kept, (AFTER, str(after))])}>; rel="next"'


def _client(text: str | None) -> str | None:
    return text if text is None or text == NO_CLIENT else check_token(text, "`clientId`")


def _outcome(text: str | None) -> str | None:
    if text is not None and text not in OUTCOMES:
        raise InvalidRequest(f"`outcome`: must be one of {', '.join(OUTCOMES)}")
    return text


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if len(text) > 9 or not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= MAX_LIMIT:
        raise InvalidRequest(f"`limit`: must be a whole number from 1 to {MAX_LIMIT}")
    return int(text)


def _position(given: dict[str, str], name: str) -> Position | None:
    text = given.get(name)
    if text is None:
        return None
    position = parse_position(text)
    if position is None:
        raise InvalidRequest(f"`{name}`: must be the id of a record")
    return position
