"""Our processes as children of `up`: `python -m gateway`, `registry` and `agent_api`, each with its own NATS user."""

import asyncio
import logging
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from agentbridge.up.children import Child
from protocol.runtime.process.announcement import read_announcement
from protocol.runtime.settings import variable

POLL_SECONDS = 0.05
READY_TIMEOUT_SECONDS = 2

log = logging.getLogger(__name__)


class Member(Child):
    """One of our processes. It keeps its first port through restarts, because the greeting has shown that port."""

    def __init__(
        self, module: str, environment: Mapping[str, str], port_field: str | None, fail: Callable[[str], None]
    ) -> None:
        super().__init__(module, fail)
        self.url: str | None = None
        self._environment = dict(environment)
        self._port_field = port_field

    def command(self) -> list[str]:
        """Run the module. `-P` keeps Python from importing a `registry.py` in the user's folder instead of ours."""
        return [sys.executable, "-P", "-m", self.name]

    def environment(self) -> dict[str, str]:
        """Return the settings of this process."""
        return self._environment

    async def follow(self, process: Process) -> None:
        """Wait for the announced URL, then for `/readyz`. All other output of the process goes to the log."""
        assert process.stdout is not None
        async for line in process.stdout:
            announced = read_announcement(line)
            if announced is None:
                log.info("%s: %s", self.name, line.decode(errors="replace").rstrip())
            else:
                await self._become_ready(announced.url)

    async def _become_ready(self, url: str | None) -> None:
        if url is not None:
            self.url = url
            if self._port_field is not None:
                self._environment[variable(self._port_field)] = str(urlsplit(url).port)
            await _until_ready(url)
        self.serves()


async def _until_ready(url: str) -> None:
    while True:
        if await _answers_ready(url):
            return
        await asyncio.sleep(POLL_SECONDS)


async def _answers_ready(url: str) -> bool:
    """Tell whether `GET /readyz` is answered with 200."""
    parts = urlsplit(url)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parts.hostname or "", parts.hostname)  # noqa: S104  compared only
    try:
        async with asyncio.timeout(READY_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(host, parts.port)
            try:
                writer.write(f"GET /readyz HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
                status = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return status.split(b" ")[1:2] == [b"200"]
