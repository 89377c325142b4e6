"""A plain subscriber of events, in a process of its own, as `bench/events.py` starts it: `event_reader.py NATS_URL`.

Each line on standard input is a count; when that many events have come since the last answer, or no more do, one line
of JSON tells how many did, how many came twice, and how long they were on their way: each event carries the moment at
which its application sent it, by the clock that all processes of a machine share. The process ends with its standard
input.
"""

import asyncio
import sys
import time

import msgspec
import nats
import uvloop
from nats.aio.msg import Msg

from measuring.figures import percentile
from protocol import codec, subjects
from protocol.runtime.tokens import DEFAULT_TENANT

PATIENCE_SECONDS = 10
POLL_SECONDS = 0.005
UNBOUNDED = -1


class _Sent(msgspec.Struct, rename="camel"):
    sent_ns: int


class _Event(msgspec.Struct, rename="camel"):
    client_id: str
    data: _Sent


_decoder = msgspec.json.Decoder(_Event)


class Reader:
    """Keeps when each event was sent, and how long ago that was when it came."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int]] = set()
        self._latencies_us: list[int] = []

    async def on_event(self, msg: Msg) -> None:
        """Take an event."""
        now = time.monotonic_ns()
        event = _decoder.decode(msg.data)
        self._seen.add((event.client_id, event.data.sent_ns))
        self._latencies_us.append((now - event.data.sent_ns) // 1000)

    async def found(self, count: int) -> bytes:
        """Wait for `count` events and return the result as JSON."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while len(self._seen) < count and time.monotonic() < give_up:
            await asyncio.sleep(POLL_SECONDS)
        took, different = sorted(self._latencies_us), len(self._seen)
        self._seen, self._latencies_us = set(), []
        return codec.encode(
            {
                "events": different,
                "twice": len(took) - different,
                "p50_us": percentile(took, 50),
                "p99_us": percentile(took, 99),
                "max_us": percentile(took, 100),
            }
        )


async def main() -> None:
    """Subscribe, then serve standard input until it ends."""
    reader = Reader()
    async with await nats.connect(sys.argv[1]) as client:
        subject = subjects.events_of(DEFAULT_TENANT)
        await client.subscribe(subject, cb=reader.on_event, pending_msgs_limit=UNBOUNDED, pending_bytes_limit=UNBOUNDED)
        await client.flush()
        print("{}", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print((await reader.found(int(line))).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
