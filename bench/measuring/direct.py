"""Several agents that call over NATS without the agent API, each a process of its own."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from measuring.direct_agent import Order
from measuring.figures import percentile
from measuring.load import Load, said, tell
from measuring.systems import System
from measuring.tools import HERE

NUMBERS_EACH = 1_000_000_000


class DirectAgents:
    """Agents that share the commands in flight among them."""

    def __init__(self, name: str, processes: list[subprocess.Popen[bytes]]) -> None:
        self._name = name
        self._processes = processes

    def commands(self, in_flight: int, seconds: float) -> Load:
        """Send commands over NATS, `in_flight` at a time in all, and return when the answers to all have come."""
        shares = [share for share in _shares(in_flight, len(self._processes)) if share]
        busy = self._processes[: len(shares)]
        for process, share in zip(busy, shares, strict=True):
            tell(process, f"{seconds} {share}")
        return _together([said(process, "an agent") for process in busy], seconds).check(self._name)


@contextlib.contextmanager
def direct_agents(system: System, ids: Path, count: int) -> Iterator[DirectAgents]:
    """Start agents that log in to NATS with their token, for as long as the context lasts."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_agent()) for _ in range(count)]
        for number, process in enumerate(processes):
            tell(process, msgspec.json.encode(_order(system, ids, number)).decode())
        for process in processes:
            said(process, "an agent")
        yield DirectAgents("direct agents", processes)


def _order(system: System, ids: Path, number: int) -> Order:
    run_file, token = system.run_file, system.agent_token
    assert run_file is not None
    assert token is not None
    return Order(run_file.nats_url, token, str(ids), number * NUMBERS_EACH)


@contextlib.contextmanager
def _agent() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "measuring.direct_agent"]
    with subprocess.Popen(command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (number < total % parts) for number in range(parts)]


def _together(found: list[dict[str, Any]], seconds: float) -> Load:
    latencies = sorted(latency for one in found for latency in one["latencies_us"])
    return Load(
        answers=len(latencies),
        seconds=seconds,
        p50_us=percentile(latencies, 50),
        p95_us=percentile(latencies, 95),
        p99_us=percentile(latencies, 99),
        max_us=latencies[-1] if latencies else 0,
        wrong=sum(one["wrong"] for one in found),
        refused=sum(one["refused"] for one in found),
        unanswered=0,
        cpu_seconds=sum(one["cpu_seconds"] for one in found),
        shown=next((one["shown"] for one in found if one["shown"]), ""),
    )
