"""The `error` frames for refused frames that a client may send again. Sans-I/O.

A client that floods the gateway gets few of them, each with the number of frames for which it stands, because one error
for each frame would fill its send buffer.
"""

from typing import NamedTuple

from msgspec.structs import replace

from protocol.frames import ErrorFrame
from protocol.records import Rate
from protocol.runtime.token_buckets import TokenBuckets

TOLD = Rate(per_second=10.0, burst=256.0)  # for each code: a burst one by one, then one in 100 ms
MAX_CODES = 16


class _Untold(NamedTuple):
    refused: int
    last: ErrorFrame


class Refusals:
    """The refusals of one client. `now` is a monotonic time in seconds."""

    __slots__ = ("_buckets", "_untold")

    def __init__(self) -> None:
        self._buckets = TokenBuckets(MAX_CODES)
        self._untold: dict[str, _Untold] = {}

    def add(self, frame: ErrorFrame, now: float) -> ErrorFrame | None:
        """Return the error to send now, if any; `details.refused` counts this and the unreported refusals before."""
        untold = self._untold.pop(frame.code, None)
        count = 1 if untold is None else untold.refused + 1
        if self._buckets.draw(frame.code, TOLD, now):
            self._untold[frame.code] = _Untold(count, frame)
            return None
        return _counted(frame, count)

    def due(self, now: float) -> list[ErrorFrame]:
        """Return the errors for unreported refusals; call this every second or so."""
        told = [code for code in self._untold if not self._buckets.draw(code, TOLD, now)]
        return [_counted(untold.last, untold.refused) for untold in map(self._untold.pop, told)]


def _counted(frame: ErrorFrame, count: int) -> ErrorFrame:
    return frame if count == 1 else replace(frame, details={**(frame.details or {}), "refused": count})
