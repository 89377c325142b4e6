"""The value of a gateway's own key: the number of its last applied report, and the sessions that are being removed.

If a registry removes a session by itself, no gateway repeats a report. So the session is listed here first. If the
registry dies between the removal of the record and the announcement, the next writer of this value announces it.
"""

from collections.abc import Iterable, Iterator

import msgspec

from protocol import codec
from protocol.errors import BridgeError
from protocol.reports import Removal

MAX_LEAVING_BYTES = 256 * 1024  # far below NATS's limit; one removal is at most as large as a token


class GatewayEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """The number of the last applied report, and the `leaving` sessions: removed, or about to be."""

    number: int
    leaving: list[Removal] = []


_applied = msgspec.json.Decoder(GatewayEntry)


def read_gateway_entry(data: bytes | None) -> GatewayEntry:
    """Decode the value of a gateway's own key. Without a value the number is 0."""
    try:
        return codec.decode(_applied, data) if data else GatewayEntry(0)
    except BridgeError:
        return GatewayEntry(0)


def departures(removals: Iterable[Removal], max_bytes: int = MAX_LEAVING_BYTES) -> Iterator[list[Removal]]:
    """Split removals into lists that each fit into one value of `max_bytes`."""
    batch: list[Removal] = []
    size = 0
    for removal in removals:
        size += (added := len(codec.encode(removal)))
        if batch and size > min(max_bytes, MAX_LEAVING_BYTES):
            yield batch
            batch, size = [], added
        batch.append(removal)
    if batch:
        yield batch
