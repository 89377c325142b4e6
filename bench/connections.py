#!/usr/bin/env python3
"""Connections: the time to connect and register many clients, their memory, and the delay of a command meanwhile.

Each round begins with a fresh bridge. While the clients connect, one of another process is called every few
milliseconds over the agent API, each call counted from when it was due, so that a pause of any process on the way is
seen in full. Memory is the growth of the processes after they have settled, by client. The kernel's part of a socket is
in no process and not counted.
"""

import argparse
import secrets
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from measuring import load, report
from measuring.figures import Spread, spread
from measuring.load import AT_ONCE, Clients, Load
from measuring.processes import resident_bytes, wait_for
from measuring.report import Outcome, Table
from measuring.systems import System, agentbridge

WARM_UP_SECONDS = 1.0
LISTED_SECONDS = 60
HTTP_SECONDS = 30
SETTLE_SECONDS = 20
SETTLE_PERIOD_SECONDS = 1.0
SETTLED_WITHIN = 0.005
STORM_SECONDS = 300
KIB = 1024


class Round(NamedTuple):
    """The figures of one storm of clients. Memory is in bytes a client, by process."""

    connected_seconds: float
    registered_seconds: float
    listed_seconds: float
    listing_seconds: float
    calm: Load
    storm: Load
    memory: dict[str, float]


def main() -> None:
    """Measure and print."""
    parser = report.options("Connect many clients at once and look at time, memory and pauses.")
    parser.add_argument("--clients", type=int, default=10_000, help="how many clients connect")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="how many of them are connecting at a time")
    parser.add_argument("--every-ms", type=int, default=10, help="how often the probing command is sent")
    parser.add_argument("--rounds", type=int, default=3, help="how often to do it")
    report.run(parser, measure)


def measure(given: argparse.Namespace, folder: Path) -> Outcome:
    """Run all rounds."""
    rounds = []
    for number in range(given.rounds):
        report.progress(f"round {number + 1} of {given.rounds}")
        place = folder / f"round-{number}"
        place.mkdir()
        with agentbridge(place, secrets.token_urlsafe(48)) as system:
            rounds.append(_round(system, folder, given))
    return _outcome(rounds, given.clients)


def _round(system: System, programs: Path, given: argparse.Namespace) -> Round:
    with load.clients(system, programs, "probed", 1) as probed:
        calm = _calm(system, programs, probed, given.every_ms)
        before = _settled(system)
        with (
            load.probe(system, programs, probed.ids, given.every_ms, STORM_SECONDS) as probe,
            load.clients(system, programs, "storm", given.clients, given.at_once) as storm,
        ):
            noticed = probe.end()
            listed, listing = _until_listed(system, given.clients + 1)
            after = _settled(system)
    return Round(
        storm.connected_seconds,
        storm.registered_seconds,
        listed,
        listing,
        calm,
        noticed,
        {name: (after[name] - before[name]) / given.clients for name in before},
    )


def _calm(system: System, programs: Path, probed: Clients, every_ms: int) -> Load:
    """Return the probe's delays without other load, after a warm-up."""
    load.commands(system, programs, probed.ids, 1, WARM_UP_SECONDS)
    with load.probe(system, programs, probed.ids, every_ms, STORM_SECONDS) as probe:
        time.sleep(WARM_UP_SECONDS)
        return probe.end()


def _until_listed(system: System, count: int) -> tuple[float, float]:
    """Return the seconds until the agent API lists all clients, and the duration of the last, complete listing."""
    began = time.monotonic()
    took = 0.0

    def are_listed() -> bool:
        nonlocal took
        asked = time.monotonic()
        listed = len(_capabilities(system))
        took = time.monotonic() - asked
        return listed == count

    wait_for(f"the listing of {count} clients", are_listed, LISTED_SECONDS)
    return time.monotonic() - began, took


def _capabilities(system: System) -> dict[str, msgspec.Raw]:
    url = f"http://127.0.0.1:{system.api_port}/api/capabilities"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {system.agent_token}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=HTTP_SECONDS) as answer:
        return msgspec.json.decode(answer.read(), type=dict[str, msgspec.Raw])


def _settled(system: System) -> dict[str, int]:
    """Return the processes' memory once it hardly changes any more, or after some seconds."""
    give_up = time.monotonic() + SETTLE_SECONDS
    now = _memory(system)
    while True:
        before = now
        time.sleep(SETTLE_PERIOD_SECONDS)
        now = _memory(system)
        if time.monotonic() > give_up or all(abs(now[n] - before[n]) < SETTLED_WITHIN * now[n] for n in now):
            return now


def _memory(system: System) -> dict[str, int]:
    return {name: resident_bytes(pid) for name, pid in system.pids.items()}


# --- results ---


def _outcome(rounds: Sequence[Round], clients: int) -> Outcome:
    memory = {name: spread(one.memory[name] / KIB for one in rounds) for name in rounds[0].memory}
    times = [
        (f"{clients:,} clients connected, s", spread(one.connected_seconds for one in rounds)),
        ("... and registered, s", spread(one.registered_seconds for one in rounds)),
        ("from then until the agent API lists all, s", spread(one.listed_seconds for one in rounds)),
        ("one listing of all, s", spread(one.listing_seconds for one in rounds)),
        *_noticed("meanwhile", [one.storm for one in rounds]),
        ("commands refused meanwhile", spread(one.storm.refused for one in rounds)),
        *_noticed("beforehand", [one.calm for one in rounds]),
    ]
    tables = [_table("connecting", times), _table("memory a client, KiB", list(memory.items()))]
    figures = {
        "connections.kib": memory["gateway"].median,
        f"connections.{clients}.registered_seconds": spread(one.registered_seconds for one in rounds).median,
        f"connections.{clients}.longest_pause_ms": max(one.storm.max_us for one in rounds) / 1000,
    }
    return Outcome(tables, figures, {"clients": clients, "rounds": [_as_json(one) for one in rounds]})


def _noticed(when: str, loads: Sequence[Load]) -> list[tuple[str, Spread]]:
    """Return the rows with the delays of a command."""
    fields = {"p50": "p50_us", "p99": "p99_us", "longest": "max_us"}
    return [
        (f"a command {when}, {what}, ms", spread(getattr(one, field) / 1000 for one in loads))
        for what, field in fields.items()
    ]


def _table(title: str, found: Sequence[tuple[str, Spread]]) -> Table:
    return Table([title, "median (min-max) of rounds"], [[what, figures.shown()] for what, figures in found])


def _as_json(one: Round) -> dict[str, object]:
    return {**one._asdict(), "calm": one.calm._asdict(), "storm": one.storm._asdict()}


if __name__ == "__main__":
    main()
