"""Decides when a tenant's store grows, and to which size. Pure.

Stores begin small, because NATS reserves their whole size. One that is three quarters full is doubled, up to the
setting. Four times as much must be free, so that the largest leave room for others: alone a store gets to about half of
all that NATS may keep.
"""

from typing import NamedTuple

from protocol.runtime.streams.jetstream import StreamInfo
from registry.stores.configurations import has_own_size

FREE_TIMES = 4


class Growth(NamedTuple):
    """The next size of a stream, and the free room that this needs."""

    size: int
    trial: int


def growth_of(info: StreamInfo, ceiling: int) -> Growth | None:
    """Return the growth of a stream, or None if it has room, has its largest size, or has an operator's size."""
    present = info.config["max_bytes"]
    if not has_own_size(info.config) or present >= ceiling or info.state.bytes * 4 < present * 3:
        return None
    size = min(2 * present, ceiling)
    return Growth(size, present + FREE_TIMES * (size - present))
