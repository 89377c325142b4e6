"""The value of a gateway's own key: the last report that was applied, and the sessions that are about to be ended.

No report would be repeated for a session that a registry ends of its own accord. Should it die between the removal of
the record and the announcement, whoever writes this value next finds here what to announce.
"""

from collections.abc import Iterable, Iterator

import msgspec

from protocol import codec
from protocol.errors import BridgeError
from protocol.reports import Removal

MAX_LEAVING_BYTES = 256 * 1024  # far below what NATS takes; one removal has at most a token's size


class Applied(msgspec.Struct, frozen=True, omit_defaults=True):
    """The number of the last report that was applied, and who is `leaving`: removed, or about to be."""

    number: int
    leaving: list[Removal] = []


_applied = msgspec.json.Decoder(Applied)


def read_applied(data: bytes | None) -> Applied:
    """Return the value of a gateway's own key; the number is 0 where there is none."""
    try:
        return codec.decode(_applied, data) if data else Applied(0)
    except BridgeError:
        return Applied(0)


def departures(removals: Iterable[Removal]) -> Iterator[list[Removal]]:
    """Split removals into lists that each fit into one value."""
    batch: list[Removal] = []
    size = 0
    for removal in removals:
        size += (added := len(codec.encode(removal)))
        if batch and size > MAX_LEAVING_BYTES:
            yield batch
            batch, size = [], added
        batch.append(removal)
    if batch:
        yield batch
