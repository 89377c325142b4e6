#!/usr/bin/env python3
"""Ask a registry for one client again and again: `questioner.py NATS_URL EVERY_MS`, until standard input ends.

The token is in the variable TOKEN. Waits count from when each question was due. Prints one line of JSON, as `load`
does.
"""

import asyncio
import json
import sys
import time

import nats
import nats.errors
from nats.aio.client import Client

from protocol import subjects
from protocol.runtime.settings import environment
from protocol.runtime.tokens import DEFAULT_TENANT

PATIENCE_SECONDS = 5.0


class Asked:
    """What came of the questions."""

    def __init__(self) -> None:
        self.waits_us: list[float] = []
        self.refused = self.unanswered = 0
        self.shown = ""

    def told(self, seconds: float) -> str:
        """Return it as one line of JSON."""
        waits = sorted(self.waits_us) or [0.0]
        return json.dumps({
            "answers": len(self.waits_us), "seconds": seconds, "p50_us": waits[len(waits) // 2],
            "p95_us": waits[int(len(waits) * 0.95)], "p99_us": waits[int(len(waits) * 0.99)], "max_us": waits[-1],
            "wrong": 0,
            "refused": self.refused, "unanswered": self.unanswered, "cpu_seconds": time.process_time(),
            "shown": self.shown,
        })  # fmt: skip


async def main() -> None:
    """Ask until standard input ends, and print what came of it."""
    client, every, asked = await nats.connect(sys.argv[1]), int(sys.argv[2]) / 1000, Asked()
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    began = due = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        while not ended.done():
            tasks.create_task(ask(client, due, asked))
            due += every
            await asyncio.sleep(max(0.0, due - time.monotonic()))
    print(asked.told(time.monotonic() - began), flush=True)
    await client.close()


async def ask(client: Client, due: float, asked: Asked) -> None:
    """Ask once."""
    headers = {"Authorization": f"Bearer {environment()['TOKEN']}"}
    try:
        subject = subjects.registry(DEFAULT_TENANT, "list")
        answer = await client.request(subject, b'{"limit":1}', PATIENCE_SECONDS, headers=headers)
    except nats.errors.NoRespondersError:
        asked.refused += 1
        return
    except (nats.errors.Error, TimeoutError):
        asked.unanswered += 1
        return
    if b'"error"' in answer.data:
        asked.refused += 1
        asked.shown = asked.shown or answer.data.decode()[:200]
    else:
        asked.waits_us.append((time.monotonic() - due) * 1e6)


if __name__ == "__main__":
    asyncio.run(main())
