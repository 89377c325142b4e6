#!/usr/bin/env python3
"""Commands a second, their latency and their CPU: ours beside the two designs that it replaces, in paired rounds.

All systems run at the same time, each with its own connected clients, but only one is under load: in each round and at
each level of commands in flight they take turns, one right after the other, and each round begins with another one.
So a ratio compares neighbours in time. On a shared machine, believe the median of the ratios.
"""

import argparse
import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measuring import load, report
from measuring.direct import direct_agents
from measuring.figures import Spread, ratios, spread
from measuring.load import Load
from measuring.processes import cpu_seconds
from measuring.report import Outcome, Table
from measuring.systems import (
    FAST_PATHS_CHOICES,
    MEMORY,
    OURS,
    OURS_OFF,
    PEER_SYSTEMS,
    REDIS,
    WITHOUT,
    System,
    agentbridge,
    ours_by,
)
from measuring.tools import Missing

DIRECT = "agentbridge, direct agents"
METRICS = ("per_second", "p50", "p99", "cpu")
WARM_UP_IN_FLIGHT = 8
MAX_REPEATED = 2


class Contestant(NamedTuple):
    """A system, and a way to put load on it: `run(in_flight, seconds)`."""

    name: str
    system: System
    clients_pid: int
    run: Callable[[int, float], Load]


class Slice(NamedTuple):
    """One contestant under load for some seconds. Times are in milliseconds, CPU in microseconds a command."""

    name: str
    in_flight: int
    per_second: float
    p50: float
    p99: float
    cpu: float
    processes: dict[str, float]
    load_cpu: float
    clients_cpu: float
    refused: int
    shown: str


def main() -> None:
    """Measure and print."""
    parser = report.options("Compare commands with the two designs that are usually built for this.")
    parser.add_argument("--levels", type=report.numbers, default=[1, 32, 256], help="commands in flight, with commas")
    parser.add_argument("--rounds", type=int, default=7, help="how often each level of each system is measured")
    parser.add_argument("--seconds", type=float, default=2, help="how long each measurement takes")
    parser.add_argument("--warm-up", type=float, default=3, help="seconds of load for each system beforehand")
    parser.add_argument("--clients", type=int, default=100, help="connected applications of each system")
    parser.add_argument("--agents", type=int, default=2, help="processes that call over NATS directly; 0 for none")
    parser.add_argument(
        "--fast-paths",
        choices=FAST_PATHS_CHOICES,
        default="on",
        help="AGENTBRIDGE_FAST_PATHS, or both ways, or on beside systems that lack one fast path each",
    )
    parser.add_argument("--peers", type=_peers, default=list(PEER_SYSTEMS), help="peers, with commas, or none")
    report.run(parser, measure)


def measure(given: argparse.Namespace, folder: Path) -> Outcome:
    """Run all rounds."""
    slices: list[Slice] = []
    turns = Turns()
    with contextlib.ExitStack() as stack:
        contestants = list(_contestants(given, folder, stack))
        for contestant in contestants:
            report.progress(f"warming up {contestant.name}")
            contestant.run(WARM_UP_IN_FLIGHT, given.warm_up / 2)
            contestant.run(max(given.levels), given.warm_up / 2)
        for number in range(given.rounds):
            report.progress(f"round {number + 1} of {given.rounds}")
            first = number % len(contestants)
            for level in given.levels:
                slices += turns.take(contestants[first:] + contestants[:first], level, given.seconds)
    found = _outcome(slices, given.levels, [contestant.name for contestant in contestants])
    again = [Table(["turns that were measured again"], [[str(turns.repeated)]])] if turns.repeated else []
    return found._replace(tables=[*found.tables, *again], details={**found.details, "repeated": turns.repeated})


def _contestants(given: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> Iterator[Contestant]:
    """Start everything and connect the clients."""
    report.progress("starting")
    peers = [stack.enter_context(PEER_SYSTEMS[name](folder)) for name in given.peers]
    ours = [
        stack.enter_context(agentbridge(folder, secrets.token_urlsafe(48), name=name, fast_paths=setting))
        for name, setting in ours_by(given.fast_paths).items()
    ]
    for system in (*ours, *peers):
        clients = stack.enter_context(load.clients(system, folder, "all", given.clients))
        yield Contestant(system.name, system, clients.pid, _over_http(system, folder, clients.ids))
        if system is ours[0] and given.agents:
            agents = stack.enter_context(direct_agents(system, clients.ids, given.agents))
            yield Contestant(DIRECT, system, clients.pid, agents.commands)


def _over_http(system: System, programs: Path, ids: Path) -> Callable[[int, float], Load]:
    return lambda in_flight, seconds: load.commands(system, programs, ids, in_flight, seconds)


class Turns:
    """One level, all contestants in turn. If one refused a command, all are measured again, a bounded number of times.

    A gateway that a busy machine starves for a second refuses commands, and its figures would be the machine's. If it
    goes on refusing, the machine is not the cause.
    """

    def __init__(self) -> None:
        self.repeated = 0

    def take(self, contestants: Sequence[Contestant], in_flight: int, seconds: float) -> list[Slice]:
        """Measure; raise `Missing` if commands are refused again and again."""
        while True:
            slices = [_slice(contestant, in_flight, seconds) for contestant in contestants]
            refusing = next((one for one in slices if one.refused), None)
            if refusing is None:
                return slices
            what = f"{refusing.name} refused {refusing.refused} commands: {refusing.shown}"
            if self.repeated == MAX_REPEATED:
                raise Missing(what)
            self.repeated += 1
            report.progress(f"measuring again, for {what}")


def _slice(contestant: Contestant, in_flight: int, seconds: float) -> Slice:
    pids = {**contestant.system.pids, "clients": contestant.clients_pid}
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    found = contestant.run(in_flight, seconds)
    used = {name: (cpu_seconds(pid) - before[name]) / found.answers * 1e6 for name, pid in pids.items()}
    clients_cpu = used.pop("clients")
    return Slice(
        contestant.name,
        in_flight,
        found.answers / found.seconds,
        found.p50_us / 1000,
        found.p99_us / 1000,
        sum(used.values()),
        used,
        found.cpu_seconds / found.answers * 1e6,
        clients_cpu,
        found.refused,
        found.shown,
    )


# --- results ---


def _outcome(slices: Sequence[Slice], levels: Sequence[int], names: Sequence[str]) -> Outcome:
    compared = {
        (one, other, level, metric): _ratio(slices, one, other, level, metric)
        for level in levels
        for one, other in _pairs(names)
        for metric in METRICS
    }
    figures = {_figure(*key): found.median for key, found in compared.items()}
    tables = [_measured(slices, levels, names), _shares(slices, levels, names)]
    if compared:
        tables.append(_ratios(compared, levels, names))
    details = {"slices": [one._asdict() for one in slices], "ratios": _as_json(compared)}
    return Outcome(tables, figures, details)


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [(one, other) for one in (OURS, OURS_OFF, DIRECT) for other in (MEMORY, REDIS)]
    pairs += [(OURS, slower) for slower in (OURS_OFF, *WITHOUT)]
    return [pair for pair in pairs if set(pair) <= set(names)]


def _of(slices: Sequence[Slice], name: str, level: int, metric: str) -> list[float]:
    return [getattr(one, metric) for one in slices if one.name == name and one.in_flight == level]


def _ratio(slices: Sequence[Slice], one: str, other: str, level: int, metric: str) -> Spread:
    return ratios(_of(slices, one, level, metric), _of(slices, other, level, metric))


def _figure(one: str, other: str, level: int, metric: str) -> str:
    """Name a ratio as the bars do; those of direct agents are held against the scaled design.

    Bars hold what runs by default, so ratios without fast paths have names of their own.
    """
    if one == OURS_OFF or other in (OURS_OFF, *WITHOUT):
        beside = other if one == OURS_OFF else WITHOUT.get(other, "off")
        return f"fast_paths.{beside}.{level}.{metric}"
    if one == DIRECT:
        other = "direct" if other == REDIS else f"direct.{other}"
    return f"commands.{other}.{level}.{metric}"


def _measured(slices: Sequence[Slice], levels: Sequence[int], names: Sequence[str]) -> Table:
    rows = []
    for level in levels:
        for name in names:
            cells = [
                spread(_of(slices, name, level, metric)).shown(digits)
                for metric, digits in zip(METRICS, (0, 2, 2, 0), strict=True)
            ]
            rows.append([name, str(level), *cells])
    return Table(["system", "in flight", "commands/s", "p50 ms", "p99 ms", "CPU us a command"], rows)


def _shares(slices: Sequence[Slice], levels: Sequence[int], names: Sequence[str]) -> Table:
    rows = []
    for level in levels:
        for name in names:
            mine = [one for one in slices if one.name == name and one.in_flight == level]
            processes = {
                process: spread(one.processes[process] for one in mine).median for process in mine[0].processes
            }
            shown = ", ".join(f"{process} {used:.0f}" for process, used in processes.items() if used >= 1)
            around = [f"{spread(figures).median:.0f}" for figures in _around(mine)]
            rows.append([name, str(level), *around, shown])
    return Table(["CPU us a command", "in flight", "load", "clients", "processes"], rows)


def _around(slices: Sequence[Slice]) -> tuple[list[float], list[float]]:
    return [one.load_cpu for one in slices], [one.clients_cpu for one in slices]


def _ratios(compared: dict[tuple[str, str, int, str], Spread], levels: Sequence[int], names: Sequence[str]) -> Table:
    rows = [
        [f"{one} / {other}", str(level), *(compared[one, other, level, metric].shown() for metric in METRICS)]
        for level in levels
        for one, other in _pairs(names)
    ]
    return Table(["ratio: median (min-max) of pairs", "in flight", "commands/s", "p50", "p99", "CPU"], rows)


def _as_json(compared: dict[tuple[str, str, int, str], Spread]) -> list[dict[str, Any]]:
    return [
        {"ours": one, "peer": other, "in_flight": level, "metric": metric, **found._asdict()}
        for (one, other, level, metric), found in compared.items()
    ]


def _peers(text: str) -> list[str]:
    names = [] if text == "none" else text.split(",")
    for name in names:
        if name not in PEER_SYSTEMS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PEER_SYSTEMS)}, none")
    return names


if __name__ == "__main__":
    main()
