#!/usr/bin/env python3
"""Run a process that writes down how long its event loop was held: `watched.py gateway FILE`.

A task looks at the clock every millisecond. The CPU time of the loop's thread between two looks, minus that
millisecond, is the hold of the loop. So the pauses of a busy machine do not count. Ten times a second the longest hold
is appended to the file, as two numbers: the monotonic clock, and milliseconds.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agent_api.service import serving as serving_agents
from agent_api.settings import ApiSettings
from gateway.__main__ import serving as serving_applications
from gateway.settings import GatewaySettings
from protocol.runtime.process import life
from registry.__main__ import serving as serving_registry
from registry.settings import RegistrySettings

LOOK_SECONDS = 0.001
REPORT_SECONDS = 0.1
KINDS: dict[str, tuple[Any, Any, str]] = {
    "gateway": (GatewaySettings, serving_applications, "gateway"),
    "agent_api": (ApiSettings, serving_agents, "api"),
    "registry": (RegistrySettings, serving_registry, "registry"),
}


def main() -> None:
    """Run the process that the first argument names."""
    name, path = sys.argv[1], Path(sys.argv[2])
    settings, serving, user = KINDS[name]

    @contextlib.asynccontextmanager
    async def watched(configured: Any, connection: Any, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        tasks.create_task(watch(path), name="watch the loop")
        async with serving(configured, connection, tasks):
            yield

    life.run(name, settings, watched, user=user)


async def watch(path: Path) -> None:
    """Write down the longest holds, for ever."""
    used, longest, report_at = time.thread_time(), 0.0, 0.0
    with path.open("a", buffering=1) as file:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.thread_time()
            longest, used = max(longest, now - used - LOOK_SECONDS), now
            if time.monotonic() >= report_at:
                file.write(f"{time.monotonic():.3f} {max(0.0, longest) * 1000:.3f}\n")
                longest, report_at = 0.0, time.monotonic() + REPORT_SECONDS


if __name__ == "__main__":
    main()
