"""Encodes server-sent events (WHATWG HTML, section 9.2), and tells whether a request asks for them."""

import re
from collections.abc import Iterable, Iterator

from agent_api.http.problems import JSON, Header

TYPE = b"text/event-stream"
HEARTBEAT = b":\n"  # a comment: readers skip it, and proxies see that the connection lives
HEARTBEAT_SECONDS = 15.0
UNICODE_LINE_ENDS = (("\x85".encode(), b"\\u0085"), ("\u2028".encode(), b"\\u2028"), ("\u2029".encode(), b"\\u2029"))
CHUNK_BYTES = 64 * 1024
_RANGES_OF_JSON = (JSON, b"application/*", b"*/*")  # the most specific one counts
_WEIGHT = re.compile(rb"0(\.[0-9]*)?|1(\.0*)?")
HEADERS: tuple[Header, ...] = (
    (b"content-type", TYPE + b"; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # or nginx and others would buffer events
)


def block(name: bytes, data: bytes) -> bytes:
    """Return a named event. JSON may have line breaks between its tokens, so each line is a field of its own.

    Line ends that only Unicode has (U+2028 and others) are escaped. Otherwise a reader that splits lines like Python's
    `str.splitlines` would read the application's text behind them as a field.
    """
    if not data.isascii():
        for character, escape in UNICODE_LINE_ENDS:
            data = data.replace(character, escape)
    lines = b"".join(b"data: %b\n" % line for line in data.splitlines())
    return b"event: %b\n%b\n" % (name, lines)


def chunks(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Join small blocks and split large ones. Yield each chunk, and whether it ends with a complete block.

    The server holds one chunk in memory for each stalled reader.
    """
    small = bytearray()
    for data in blocks:
        if len(small) + len(data) > CHUNK_BYTES and small:
            yield bytes(small), True
            small.clear()
        if len(data) <= CHUNK_BYTES:
            small += data
        else:
            yield from ((data[at : at + CHUNK_BYTES], at + CHUNK_BYTES >= len(data)) for at in _steps(data))
    if small:
        yield bytes(small), True


def is_wanted(accept: bytes) -> bool:
    """Tell whether an `Accept` header asks for events, and prefers them to JSON (RFC 9110 section 12.5.1)."""
    if TYPE not in accept.lower():  # the usual case
        return False
    weights = dict(map(_weighted, accept.lower().split(b",")))
    json = next((weights[kind] for kind in _RANGES_OF_JSON if kind in weights), 0.0)
    return weights.get(TYPE, 0.0) > 0 and weights[TYPE] >= json


def _steps(data: bytes) -> range:
    return range(0, len(data), CHUNK_BYTES)


def _weighted(media_range: bytes) -> tuple[bytes, float]:
    """Return a media range and its weight. For malformed text the weight is 0."""
    kind, *parameters = (part.strip() for part in media_range.split(b";"))
    named = ((name.strip(), value.strip()) for name, _, value in (one.partition(b"=") for one in parameters))
    weight = next((value for name, value in named if name == b"q"), b"1")
    return kind, float(weight) if _WEIGHT.fullmatch(weight) else 0.0
