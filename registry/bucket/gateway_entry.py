"""The value of a gateway's own key: the last report that was applied, and the sessions that are about to be ended.

If a registry ends a session of its own accord, no gateway repeats a report. If that registry dies between the removal
of the record and the announcement, the next writer of this value finds here what to announce.
"""

from collections.abc import Iterable, Iterator

import msgspec

from protocol import codec
from protocol.errors import BridgeError
from protocol.reports import Removal

MAX_LEAVING_BYTES = 256 * 1024  # far below NATS's limit; one removal has at most a token's size


class GatewayEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """The number of the last applied report, and the sessions that are `leaving`: removed, or about to be."""

    number: int
    leaving: list[Removal] = []


_applied = msgspec.json.Decoder(GatewayEntry)


def read_gateway_entry(data: bytes | None) -> GatewayEntry:
    """Return the value of a gateway's own key; the number is 0 if there is none."""
    try:
        return codec.decode(_applied, data) if data else GatewayEntry(0)
    except BridgeError:
        return GatewayEntry(0)


def departures(removals: Iterable[Removal], max_bytes: int = MAX_LEAVING_BYTES) -> Iterator[list[Removal]]:
    """Split removals into lists that each fit into one value, which takes `max_bytes` at most."""
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
