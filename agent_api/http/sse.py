"""Server-sent events as they travel (WHATWG HTML, section 9.2), and whether a request asks for them."""

from collections.abc import Iterable, Iterator

from agent_api.http.problems import JSON, Header

TYPE = b"text/event-stream"
HEARTBEAT = b":\n"  # a comment: readers skip it, and proxies see that the connection lives
HEARTBEAT_SECONDS = 15.0
CHUNK_BYTES = 64 * 1024
HEADERS: tuple[Header, ...] = (
    (b"content-type", TYPE + b"; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx and others would keep events back
)


def block(name: bytes, data: bytes) -> bytes:
    """Return a named event. JSON may have line breaks between its tokens; each line is a field of its own."""
    lines = b"".join(b"data: %b\n" % line for line in data.splitlines())
    return b"event: %b\n%b\n" % (name, lines)


def chunks(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Join what is small and cut what is large; say of each chunk whether it ends where a block does.

    The server below holds a chunk for each reader, whoever stalls.
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
    """Tell whether a header `Accept` asks for events and does not rather have JSON (RFC 9110 section 12.5.1)."""
    if TYPE not in accept.lower():  # as nearly always
        return False
    weights = dict(map(_weighted, accept.lower().split(b",")))
    return weights.get(TYPE, 0.0) > 0 and weights[TYPE] >= weights.get(JSON, 0.0)


def _steps(data: bytes) -> range:
    return range(0, len(data), CHUNK_BYTES)


def _weighted(media_range: bytes) -> tuple[bytes, float]:
    kind, *parameters = (part.strip() for part in media_range.split(b";"))
    weight = next((value for name, _, value in (one.partition(b"=") for one in parameters) if name == b"q"), b"1")
    try:
        return kind, float(weight)
    except ValueError:
        return kind, 0.0
