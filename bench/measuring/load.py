"""The two programs that put load on a system: simulated clients, and agents that call them over HTTP."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from measuring.systems import System
from measuring.tools import Missing
from protocol.runtime.settings import environment

AT_ONCE = 64


class Load(NamedTuple):
    """The result of load: right answers in the measured time, their latencies, the refusals, and the first refusal."""

    answers: int
    seconds: float
    p50_us: float
    p95_us: float
    p99_us: float
    max_us: float
    wrong: int
    refused: int
    unanswered: int
    cpu_seconds: float
    shown: str = ""

    def check(self, system: str) -> "Load":
        """Return itself; raise `Missing` if an answer was wrong or never came, or if there is none at all."""
        if self.wrong or self.unanswered or not self.answers:
            raise Missing(
                f"{system}: {self.answers} right answers, {self.wrong} wrong ones, {self.unanswered} never came; the "
                f"first wrong one: {self.shown or '-'}"
            )
        return self


class Published(NamedTuple):
    """The result of publishing: the acknowledged events, and the wait of each for its acknowledgement."""

    events: int
    seconds: float
    p50_us: float
    p99_us: float
    max_us: float
    refused: int


class Back(NamedTuple):
    """The return of clients whose gateway died: seconds until the last has registered, and how many have a new id."""

    back: float
    resumed: int
    renamed: int


class Clients:
    """Simulated applications, connected and registered."""

    def __init__(self, process: subprocess.Popen[bytes], ids: Path, took: dict[str, float]) -> None:
        self.pid = process.pid
        self.ids = ids
        self.connected_seconds = took["connected"]
        self.registered_seconds = took["registered"]
        self._process = process

    def publish(self, clients: int, seconds: float, *, ids: bool) -> Published:
        """Have some of them publish events for a while, each one at a time."""
        tell(self._process, f"publish {clients} {seconds} {int(ids)}")
        return Published(**said(self._process, "the clients"))

    def come_back(self) -> Back:
        """Wait until all have come back after the death of their gateway."""
        return Back(**said(self._process, "the clients"))


@contextlib.contextmanager
def clients(
    system: System, programs: Path, name: str, count: int, at_once: int = AT_ONCE, back_port: int | None = None
) -> Iterator[Clients]:
    """Connect simulated applications to a system for as long as the context lasts.

    With `back_port` they resume their sessions: when their connections end, they connect again, at that port.
    """
    ids = programs / f"{system.name}-{name}.ids"
    arguments = [system.socket_port, "/ws", count, at_once, int(system.acknowledges), ids]
    arguments += [] if back_port is None else [back_port]
    with _program(programs / "clients", arguments, system.app_token) as process:
        yield Clients(process, ids, said(process, "the clients"))


def commands(system: System, programs: Path, ids: Path, in_flight: int, seconds: float) -> Load:
    """Send commands over HTTP, `in_flight` at a time, and return when the answers to all have come."""
    with _program(programs / "load", [system.api_port, ids, in_flight, seconds, 0], system.agent_token) as process:
        return Load(**said(process, "the load generator")).check(system.name)


class Probe:
    """One command every few milliseconds, to see pauses by."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        self._process = process
        self._name = name

    def end(self) -> Load:
        """Stop and return the result; raise `Missing` for a wrong answer, or one that never came."""
        return self.noticed().check(self._name)

    def noticed(self) -> Load:
        """Stop and return the result, whatever it is."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return Load(**said(self._process, "the probe"))


@contextlib.contextmanager
def probe(system: System, programs: Path, ids: Path, every_ms: int, at_most_seconds: float) -> Iterator[Probe]:
    """Call a client every `every_ms`, counting from when each call was due."""
    arguments = [system.api_port, ids, 1, at_most_seconds, every_ms]
    with _program(programs / "load", arguments, system.agent_token) as process:
        yield Probe(process, system.name)


@contextlib.contextmanager
def questions(nats_url: str, token: str, every_ms: int) -> Iterator[Probe]:
    """Ask a registry a question every `every_ms`, counting from when each was due."""
    program = Path(__file__).parent / "questioner.py"
    with _program(Path(sys.executable), [program, nats_url, every_ms], token) as process:
        yield Probe(process, "registry")


@contextlib.contextmanager
def _program(program: Path, arguments: list[Any], token: str | None) -> Iterator[subprocess.Popen[bytes]]:
    """Run one of the two programs, which end with their standard input; the token is not for `ps` to show."""
    variables = {**environment(), **({"TOKEN": token} if token else {})}
    command = [str(program), *map(str, arguments)]
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[bytes], line: str) -> None:
    """Write a line to a program's standard input."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n".encode())
    process.stdin.flush()


def said(process: subprocess.Popen[bytes], who: str) -> dict[str, Any]:
    """Return the line of JSON that a program prints; raise `Missing` if it ends without one."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise Missing(f"{who} ended with exit code {process.wait()}")
    said: dict[str, Any] = json.loads(line)
    return said
