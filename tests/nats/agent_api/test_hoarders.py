"""One token that fills the agent API's memory with bodies that never end, and another tenant that notices nothing."""

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.played.agent_api import Message, World
from support.processes.child import Process
from support.settings import agent_token, bearer, environment
from support.wait import until

from agent_api.commands.admission import MAX_BYTES
from protocol.runtime.connections.bounds import MAX_INPUT_BYTES

COMMAND = {"clientId": "c1", "command": {"target": "f"}}
LARGE_COMMAND = {"clientId": "c1", "command": {"target": "large", "parameters": {"text": "x" * 900_000}}}
LARGE_COMMANDS = 60
MAX_MESSAGE_BYTES = 983_040
CONNECTING = 50  # at a time
MEGABYTE = 1024 * 1024
LARGE_PERCENT = 100 * LARGE_COMMANDS * 900_000 / MAX_BYTES


@pytest.fixture
async def process(world: World, nats_url: str, tmp_path: Path) -> AsyncIterator[Process]:
    async def answer(message: Message) -> str:
        if message["target"] == "large":
            seen.append(message)
            await until(lambda: len(seen) == LARGE_COMMANDS)
        return "done"

    seen = list[Message]()
    await world.hold("c1", answer, tenant="acme")
    started = Process("agent_api", tmp_path, environment(nats_url))
    try:
        yield await started.start()
    finally:
        started.end()


class Hoarder:
    """Requests of one token, each with a head that announces a large body, and a part of that body."""

    def __init__(self, url: str) -> None:
        self._host, port = url.removeprefix("http://").split(":")
        self._port = int(port)
        self._token = agent_token("hoarder", tenant="hoarders")
        self._places = asyncio.Semaphore(CONNECTING)
        self._connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._limits: set[str] = set()

    async def send(self, requests: int, body_bytes: int) -> None:
        """Send the beginnings of so many requests, and leave them open."""
        await asyncio.gather(*(self._send(body_bytes) for _ in range(requests)))

    async def limits(self) -> set[str]:
        """Return the limits that the requests have heard of that were refused by now."""
        answers = await asyncio.gather(*(self._answer(reader) for reader, _ in self._connections))
        bodies = [body for head, _, body in (each.partition("\r\n\r\n") for each in answers) if head]
        self._limits |= {json.loads(body)["details"]["limit"] for body in bodies}
        return self._limits

    async def close(self) -> None:
        for _, writer in self._connections:
            writer.transport.abort()

    async def _send(self, body_bytes: int) -> None:
        async with self._places:
            reader, writer = await asyncio.open_connection(self._host, self._port)
            self._connections.append((reader, writer))
            writer.write(
                f"POST /api/command HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {MAX_MESSAGE_BYTES}\r\n\r\n".encode()
            )
            writer.write(b" " * body_bytes)
            with contextlib.suppress(ConnectionError):  # one that is refused is closed
                await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader) -> str:
        with contextlib.suppress(TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            async with asyncio.timeout(0.2):
                head = await reader.readuntil(b"\r\n\r\n")
                assert b"429" in head.partition(b"\r\n")[0]
                assert b"connection: close" in head
                return (head + await reader.read(MEGABYTE)).decode()
        return ""


@contextlib.asynccontextmanager
async def hoarder_at(url: str) -> AsyncIterator[Hoarder]:
    hoarder = Hoarder(url)
    try:
        yield hoarder
    finally:
        await hoarder.close()


async def statuses_of(http: httpx.AsyncClient, hoarding: asyncio.Task[Any]) -> Counter[int]:
    """Send commands while somebody hoards, then large ones that need room all at once; count their statuses."""
    statuses = Counter[int]()
    while not hoarding.done():
        statuses[(await http.post("/api/command", json=COMMAND)).status_code] += 1
    for response in await asyncio.gather(
        *(http.post("/api/command", json=LARGE_COMMAND) for _ in range(LARGE_COMMANDS))
    ):
        statuses[response.status_code] += 1
    return statuses


async def leaves_less_than_is_asked_for(http: httpx.AsyncClient) -> bool:
    """Tell whether the room that is left for commands is well below what the large commands need."""
    metrics = (await http.get("/metrics")).text
    used = re.search(r'^agentbridge_agent_api_shares_used_percent{of="commands"} (\S+)$', metrics, re.MULTILINE)
    assert used is not None
    return 100 - float(used[1]) < LARGE_PERCENT / 2


def peak_bytes(process: Process) -> int:
    """Return the most memory that a process has had."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.parametrize(("requests", "body_bytes"), [(300, 0), (300, 100_000), (600, 900_000)])
async def test_bodies_that_do_not_end_cost_other_tenants_nothing_and_memory_is_bounded(
    process: Process, requests: int, body_bytes: int
) -> None:
    before = peak_bytes(process)
    other = httpx.AsyncClient(
        base_url=process.url, headers=bearer(agent_token("other", tenant="acme")), trust_env=False
    )
    is_too_much = requests * body_bytes > MAX_BYTES
    async with asyncio.timeout(50), other, hoarder_at(process.url) as hoarder, asyncio.TaskGroup() as tasks:

        async def hoard() -> None:
            await hoarder.send(requests, body_bytes)
            if is_too_much:
                # Bodies that grow side by side are refused side by side, and then the others fill the room.
                await until(hoarder.limits, 20)
                await until(lambda: leaves_less_than_is_asked_for(other), 20)

        statuses = await statuses_of(other, tasks.create_task(hoard()))
        assert statuses.keys() == {200}
        limits = await hoarder.limits()
    # Bodies that grow side by side leave holes, half as much again. 64 KiB of each connection are not counted.
    assert peak_bytes(process) - before < 3 / 2 * MAX_BYTES + MAX_INPUT_BYTES + 112 * MEGABYTE
    # It gives back for the other tenant, and nothing while there is room.
    assert "tenant" in limits if is_too_much else not limits
