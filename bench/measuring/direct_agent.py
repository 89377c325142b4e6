"""One agent that speaks NATS directly, in a process of its own, as `direct.py` starts it.

The first line on standard input is JSON with the URL of NATS, the token and the clients. Each further line, `SECONDS
IN_FLIGHT`, is answered with one line of JSON: the result of that load. Every answer is checked for the number that its
command carried. The process ends with its standard input.
"""

import asyncio
import gc
import itertools
import sys
import time
from pathlib import Path

import msgspec
import uvloop

from agentbridge.cli.credentials import CommandSettings, user_of
from protocol import codec
from protocol.errors import BridgeError
from protocol.messages import CommandRequest
from protocol.runtime.commands.caller import Caller
from protocol.runtime.nats.connection import connect
from protocol.runtime.tokens import DEFAULT_TENANT
from protocol.subjects import ClientAddress

TIMEOUT_MS = 30_000
TEXT = "What an agent would like its user to read in this place"


class Order(msgspec.Struct):
    """The URL of NATS, the caller's token and the clients to call."""

    nats_url: str
    token: str
    ids: str
    first: int


class _Parameters(msgspec.Struct):
    text: str
    n: int


class _Result(msgspec.Struct):
    n: int


class _Done(Exception):
    """Ends the task group."""


_result_decoder = msgspec.json.Decoder(_Result)


class Agent:
    """Calls clients in turn and keeps the latencies."""

    def __init__(self, caller: Caller, order: Order) -> None:
        self._caller = caller
        self._token = order.token
        ids = Path(order.ids).read_text().split()
        self._addresses = itertools.cycle([ClientAddress(DEFAULT_TENANT, client_id) for client_id in ids])
        self._numbers = itertools.count(order.first)
        self._latencies_us: list[int] = []
        self._wrong = self._refused = 0
        self._shown = ""

    async def run(self, seconds: float, in_flight: int) -> bytes:
        """Keep `in_flight` commands in flight for a while and return the result as JSON."""
        self._latencies_us, self._wrong, self._refused, self._shown = [], 0, 0, ""
        cpu, until = time.process_time(), time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            for _ in range(in_flight):
                tasks.create_task(self._call_until(until), name="commands")
        counts = {"wrong": self._wrong, "refused": self._refused, "shown": self._shown}
        cpu_seconds = time.process_time() - cpu
        return codec.encode({"latencies_us": self._latencies_us, "cpu_seconds": cpu_seconds, **counts})

    async def _call_until(self, until: float) -> None:
        while (began := time.monotonic()) < until:
            if await self._is_answered() and (now := time.monotonic()) < until:
                self._latencies_us.append(int((now - began) * 1e6))

    async def _is_answered(self) -> bool:
        try:
            is_right = await self._call_once()
        except BridgeError as exc:
            self._refused += 1
            self._shown = self._shown or exc.message
            return False
        self._wrong += not is_right
        return is_right

    async def _call_once(self) -> bool:
        n = next(self._numbers)
        parameters = msgspec.Raw(codec.encode(_Parameters(TEXT, n)))
        command = CommandRequest(target="headline", action="setText", parameters=parameters, timeout_ms=TIMEOUT_MS)
        response = await self._caller.call(next(self._addresses), command, self._token)
        return _result_decoder.decode(response.value()).n == n


async def _never_known(address: ClientAddress, token: str | None) -> bool:
    return False


async def main() -> None:
    """Connect, then serve standard input until it ends."""
    order = msgspec.json.decode(sys.stdin.readline(), type=Order)
    settings = CommandSettings(nats_url=order.nats_url, log_level="error")
    user = user_of(order.token)
    async with connect(settings, "bench-agent", user, token=lambda: order.token) as connection:
        try:
            async with asyncio.TaskGroup() as tasks:
                caller = Caller(connection, _never_known, tasks)
                await caller.start()
                await _serve(Agent(caller, order))
                raise _Done
        except* _Done:
            pass


async def _serve(agent: Agent) -> None:
    gc.collect()
    gc.freeze()
    print("{}", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        seconds, in_flight = line.split()
        print((await agent.run(float(seconds), int(in_flight))).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
