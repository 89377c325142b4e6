#!/usr/bin/env python3
"""Floods: what strangers, applications and agents of one tenant do to another tenant, at each port and over NATS.

Each kind of flood is sent to each process for some seconds, by one socket and by many, with a token and without.
Meanwhile a neighbour, of another tenant, sends a command every few milliseconds; during floods of questions it asks the
registry instead. Its wait is real time, beside the same while nothing is flooded, which is measured at the beginning,
in the middle and at the end. Enemies that speak a dialect come back as often as they are sent away. The hold is CPU
time of the loop's thread, so that a busy machine does not count. At last each process is asked to end in a flood. A
last table names the lines that miss a bar; then the exit code is 1.
"""

import argparse
import json
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from measuring import load, report
from measuring.bars import FLOOR
from measuring.enemies.dialects import KINDS as DIALECT_KINDS
from measuring.enemies.dialects import OF_AGENTS
from measuring.flooder import BODIES, FRAMES, HOARDS, HTTP_BLOCKS, WITHOUT_HANDSHAKE
from measuring.load import Load, Probe
from measuring.processes import Service, forget_peak, free_port, peak_mb, running
from measuring.report import Outcome, Table
from measuring.systems import System, nats
from measuring.tools import HERE

from protocol.access import AGENT, APP
from protocol.runtime.settings import environment, variable
from protocol.runtime.tokens import mint

MEASURING = HERE / "measuring"
TOKEN_SECONDS = 6 * 3600
SETTLE_SECONDS = 0.4
EVERY_MS = 20
GATEWAY, AGENT_API, REGISTRY = "gateway", "agent_api", "registry"
ONLY_APPLICATIONS = ("late responses", "events", "large events")
# By `attacker.py`: where it goes, and whether it has a good token.
OTHERS = {
    "bursts": (AGENT_API, True),
    "large commands": (AGENT_API, True),
    "large answers": (GATEWAY, True),
    "garbage": (GATEWAY, False),
    "forged tokens": (GATEWAY, False),
    "commands": (GATEWAY, True),
    "questions": (REGISTRY, False),
    "signed questions": (REGISTRY, True),
}
ALL_KINDS = (*FRAMES, *HTTP_BLOCKS, *HOARDS, *DIALECT_KINDS, *OTHERS)
ENDING = {GATEWAY: "garbage", AGENT_API: "silent sockets", REGISTRY: "questions"}
MAX_RATIO, MAX_HOLD_MS = 3.0, 20.0
IN_FLOOD_SECONDS = 1.0  # before a process is asked to end
LOST = "is lost; withdrew"


class Flood(NamedTuple):
    """One flood: where it goes, of what kind, by how many sockets, and with a token or without."""

    target: str
    kind: str
    sockets: int
    with_token: bool


class Found(NamedTuple):
    """What came of a flood, or of none at a process."""

    flood: Flood | None
    target: str
    hold_ms: float
    neighbour: Load
    peak_mb: float
    sent: int = 0
    closed: int = 0

    @property
    def unanswered(self) -> int:
        """How many commands of the neighbour had no answer, or a wrong one."""
        return self.neighbour.unanswered + self.neighbour.wrong


class Bridge(NamedTuple):
    """A bridge whose loops are watched, and who floods it."""

    system: System
    services: dict[str, Service]
    holds: dict[str, Path]
    app_token: str
    agent_token: str
    nats_url: str

    @property
    def variables(self) -> dict[str, str]:
        """What an attacker from both sides is told."""
        ports = {"SOCKET_PORT": str(self.system.socket_port), "API_PORT": str(self.system.api_port)}
        tokens = {"APP_TOKEN": self.app_token, "AGENT_TOKEN": self.agent_token}
        return {**ports, **tokens, "NATS_URL": self.nats_url}


def main() -> None:
    """Measure and print."""
    parser = report.options("Flood the ports of a bridge and look at its event loops and at a neighbour.")
    parser.add_argument("--sockets", type=report.numbers, default=[1, 40], help="how many sockets flood, with commas")
    parser.add_argument("--seconds", type=float, default=2, help="how long each flood takes")
    parser.add_argument("--kinds", type=_kinds, default=",".join(ALL_KINDS), help="which kinds, with commas")
    parser.add_argument("--no-strict", dest="strict", action="store_const", const=None, help="exit with 0 in any case")
    parser.set_defaults(strict=FLOOR)
    report.run(parser, measure)


def _kinds(given: str) -> list[str]:
    """Return the kinds of an option. Raises `argparse.ArgumentTypeError` for a name that is none."""
    kinds = given.split(",")
    if unknown := set(kinds).difference(ALL_KINDS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of {', '.join(ALL_KINDS)}")
    return kinds


def measure(given: argparse.Namespace, folder: Path) -> Outcome:
    """Send all floods, one after the other, and have the processes end in one."""
    floods = list(_floods(given))
    with bridge(folder) as flooded, load.clients(flooded.system, folder, "neighbour", 1) as neighbour:

        def one(flood: Flood | None, target: str = GATEWAY) -> Found:
            return _one(flooded, folder, neighbour.ids, flood, target, given.seconds)

        def calm() -> list[Found]:
            return [one(None), *([one(None, REGISTRY)] if any(each.target == REGISTRY for each in floods) else [])]

        found = calm()
        for number, flood in enumerate(floods):
            report.progress(f"{number + 1}/{len(floods)}: {_name(flood)}, {flood.sockets} sockets, {_token(flood)}")
            found.append(one(flood, flood.target))
            if number == len(floods) // 2:
                found += calm()
        found += calm()
        lost = flooded.services[REGISTRY].log.count(LOST)
        endings = {target: _ending(flooded, target) for target in ENDING}
        logs = "".join(service.log for service in flooded.services.values())
    return _outcome(found, endings, lost, logs.count("Traceback"))


def _floods(given: argparse.Namespace) -> Iterator[Flood]:
    """Yield all floods; an attack by `attacker.py` has a token, or has not, by its kind."""
    for kind in (kind for kind in given.kinds if kind != "bytes"):
        for target in _targets(kind):
            for with_token in _tokens(kind):
                for sockets in given.sockets:
                    yield Flood(target, kind, sockets, with_token)


def _tokens(kind: str) -> tuple[bool, ...]:
    """Return whether a kind is sent without a token, with one, or both. A dialect begins with a session, by a token."""
    if kind in OTHERS:
        return (OTHERS[kind][1],)
    if kind in DIALECT_KINDS:
        return (True,)
    return (False,) if kind in WITHOUT_HANDSHAKE else (False, True)


def _targets(kind: str) -> list[str]:
    if kind in OTHERS:
        return [OTHERS[kind][0]]
    if kind in DIALECT_KINDS:
        return [AGENT_API if kind in OF_AGENTS else GATEWAY]
    if kind in HTTP_BLOCKS or kind in BODIES:
        return [AGENT_API]
    return [GATEWAY] if kind in ONLY_APPLICATIONS else [GATEWAY, AGENT_API]


def _one(given: Bridge, folder: Path, ids: Path, flood: Flood | None, target: str, seconds: float) -> Found:
    began = time.monotonic()
    forget_peak(given.system.pids[target])
    with _noticing(given, folder, ids, target, seconds) as probe:
        time.sleep(SETTLE_SECONDS)
        said = _send(given, flood, seconds) if flood is not None else _calm(seconds)
        noticed = probe.noticed()
    time.sleep(SETTLE_SECONDS)
    hold, peak = _longest(given.holds[target], began), peak_mb(given.system.pids[target])
    return Found(flood, target, hold, noticed, peak, said["sent"], said["closed"])


def _noticing(given: Bridge, folder: Path, ids: Path, target: str, seconds: float) -> AbstractContextManager[Probe]:
    """Return what sends the neighbour's commands, or its questions."""
    token = given.system.agent_token
    if target == REGISTRY and token is not None:
        return load.questions(given.nats_url, token, EVERY_MS)
    return load.probe(given.system, folder, ids, EVERY_MS, 10 * seconds + 60)


def _ending(given: Bridge, target: str) -> float:
    """Return how long a process takes to end in a flood, after SIGTERM, in seconds."""
    report.progress(f"the end of {target} in a flood")
    kind = ENDING[target]
    with_token = OTHERS[kind][1] if kind in OTHERS else False
    with ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(_send, given, Flood(target, kind, 40, with_token), 3 * IN_FLOOD_SECONDS)
        time.sleep(IN_FLOOD_SECONDS)
        took = given.services[target].ending_seconds()
        wait([flooding])
    return took


def _calm(seconds: float) -> dict[str, int]:
    time.sleep(seconds)
    return {"sent": 0, "closed": 0}


def _send(given: Bridge, flood: Flood, seconds: float) -> dict[str, Any]:
    if flood.kind in OTHERS:
        return _said([MEASURING / "attacker.py", flood.kind, flood.sockets, seconds], given.variables)
    port, path = (given.system.socket_port, "/ws") if flood.target == GATEWAY else (given.system.api_port, "/api/ws")
    token = given.app_token if flood.target == GATEWAY else given.agent_token
    if flood.kind in DIALECT_KINDS:
        return _said(["-m", "measuring.enemies.dialects", port, flood.kind, flood.sockets, seconds], {"TOKEN": token})
    arguments = [MEASURING / "flooder.py", port, path, flood.kind, flood.sockets, seconds]
    return _said(arguments, {"TOKEN": token} if flood.with_token else {})


def _said(arguments: list[Any], variables: dict[str, str]) -> dict[str, Any]:
    """Run a flooder and return what it prints: at the lowest priority, because strangers have machines of their own."""
    command, given = ["nice", "-n", "19", sys.executable, *map(str, arguments)], {**environment(), **variables}
    ended = subprocess.run(command, cwd=HERE, env=given, stdout=subprocess.PIPE, check=True, timeout=120)
    said: dict[str, Any] = json.loads(ended.stdout)
    return said


def _longest(path: Path, since: float) -> float:
    lines = (line.split() for line in path.read_text().splitlines())
    return max((float(hold) for at, hold in lines if float(at) >= since), default=0.0)


@contextmanager
def bridge(folder: Path) -> Iterator[Bridge]:
    """Run a bridge whose gateway and agent API watch their loops; the flooder is another tenant than the neighbour."""
    secret = secrets.token_urlsafe(48)
    with ExitStack() as stack:
        nats_url, _ = stack.enter_context(nats(folder))
        ports = {GATEWAY: free_port(), AGENT_API: free_port()}
        variables = {
            variable(name): str(value)
            for name, value in {
                "nats_url": nats_url,
                "jwt_secret": secret,
                "gateway_port": ports[GATEWAY],
                "api_port": ports[AGENT_API],
                "log_level": "warning",
            }.items()
        }
        holds, pids, services = {}, {}, {}
        for name in (REGISTRY, GATEWAY, AGENT_API):
            holds[name] = folder / f"{name}.holds"
            command = [sys.executable, str(MEASURING / "watched.py"), name, str(holds[name])]
            services[name] = process = stack.enter_context(running(name, command, folder, variables))
            if name in ports:
                process.wait_for_port(ports[name])
            pids[name] = process.pid
        agent, app = (mint(secret, f"neighbour-{role}", role, TOKEN_SECONDS) for role in (AGENT, APP))
        system = System("agentbridge", ports[AGENT_API], ports[GATEWAY], pids, agent, app, acknowledges=True)
        of_app, of_agent = (
            mint(secret, f"flooder-{role}", role, TOKEN_SECONDS, tenant="flood") for role in (APP, AGENT)
        )
        yield Bridge(system, services, holds, of_app, of_agent, nats_url)


def _outcome(found: list[Found], endings: dict[str, float], lost: int, tracebacks: int) -> Outcome:
    p95s = {
        target: statistics.median(one.neighbour.p95_us for one in found if one.flood is None and one.target == target)
        for target in {one.target for one in found if one.flood is None}
    }
    floods = [one for one in found if one.flood is not None]
    ratios = [_ratio(one, p95s) for one in floods]
    figures = {
        "floods.hold_ms": max(one.hold_ms for one in floods),
        "floods.p95_ratio": max(ratios),
        "floods.peak_mb": max(one.peak_mb for one in floods),
        "floods.refused": sum(one.neighbour.refused for one in floods),
        "floods.unanswered": sum(one.unanswered for one in floods),
        "floods.gateways_lost": lost,
        "floods.tracebacks": tracebacks,
        "floods.ending_seconds": max(endings.values()),
    }
    details = {
        "floods": [
            {**one._asdict(), "flood": one.flood and one.flood._asdict(), "neighbour": one.neighbour._asdict()}
            for one in found
        ],
        "endings": endings,
    }
    headers = ["flood", "sockets", "token", "hold, CPU ms", "p50 ms", "p95 ms", "x calm", "max ms", "refused"]
    headers += ["unanswered", "peak MB", "sent MB", "closed", "misses"]
    tables = [Table(headers, [_row(one, p95s) for one in found])]
    tables.append(Table(["end in a flood", "s"], [[target, f"{took:.2f}"] for target, took in endings.items()]))
    failing = [one for one in floods if _misses(one, p95s)]
    lines = [
        [f"{_row(one, p95s)[0]}, {_row(one, p95s)[1]} sockets, {_token(one.flood)}", _misses(one, p95s)]
        for one in failing
    ]
    tables.append(Table(["lines that fail", "because"], lines or [["none", ""]]))
    return Outcome(tables, figures, details)


def _ratio(one: Found, p95s: dict[str, float]) -> float:
    """Return the neighbour's p95 beside the same while nothing is flooded."""
    return one.neighbour.p95_us / p95s[REGISTRY if one.target == REGISTRY else GATEWAY]


def _misses(one: Found, p95s: dict[str, float]) -> str:
    """Return which bars a flood misses, in words; nothing if it meets all."""
    if one.flood is None:
        return ""
    ratio, refused = _ratio(one, p95s), one.neighbour.refused
    missed = {
        f"p95 {ratio:.1f} x calm": ratio > MAX_RATIO,
        f"held for {one.hold_ms:.1f} ms": one.hold_ms > MAX_HOLD_MS,
        f"{refused} refused": refused > 0,
        f"{one.unanswered} unanswered": one.unanswered > 0,
    }
    return "; ".join(name for name, is_missed in missed.items() if is_missed)


def _name(flood: Flood) -> str:
    return f"{flood.kind} at {flood.target}"


def _token(flood: Flood | None) -> str:
    return "" if flood is None else "token" if flood.with_token else "no token"


def _row(one: Found, p95s: dict[str, float]) -> list[str]:
    flood, seen = one.flood, one.neighbour
    return [
        f"calm, {one.target}" if flood is None else _name(flood),
        "" if flood is None else str(flood.sockets),
        "" if flood is None else "yes" if flood.with_token else "no",
        f"{one.hold_ms:.1f}",
        f"{seen.p50_us / 1000:.1f}",
        f"{seen.p95_us / 1000:.1f}",
        f"{_ratio(one, p95s):.1f}",
        f"{seen.max_us / 1000:.1f}",
        str(seen.refused),
        str(one.unanswered),
        f"{one.peak_mb:.0f}",
        f"{one.sent / 1e6:.1f}",
        str(one.closed),
        _misses(one, p95s),
    ]


if __name__ == "__main__":
    main()
