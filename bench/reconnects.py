#!/usr/bin/env python3
"""Reconnects: how long clients that resume take to be back after the death of their gateway, and what others notice.

All clients are at one gateway, which is killed; they connect again at another one, all at once. While they do, a client
of that other gateway is called every few milliseconds over the agent API, each call counted from when it was due.
"""

import argparse
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from measuring import load, report
from measuring.figures import spread
from measuring.load import AT_ONCE, Load
from measuring.processes import cpu_seconds, family, free_port, resident_bytes, running
from measuring.report import Outcome, Table
from measuring.systems import TOKEN_SECONDS, System, agentbridge, nats
from measuring.tools import Missing

from protocol.access import APP
from protocol.runtime.settings import variable
from protocol.runtime.tokens import mint

PROBE_SECONDS = 300
CALM_SECONDS = 1.0
KIB = 1024


class Round(NamedTuple):
    """The figures of one death, by client: the CPU of the surviving gateway, and the memory of the killed one."""

    back_seconds: float
    cpu_ms: float
    kib: float
    calm: Load
    storm: Load


def main() -> None:
    """Measure and print."""
    parser = report.options("Kill a gateway and look at how its clients come back.")
    parser.add_argument("--clients", type=int, default=10_000, help="how many clients come back")
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
        secret = secrets.token_urlsafe(48)
        with nats(place) as (url, _), agentbridge(place, secret, url) as system:
            rounds.append(_round(system, url, secret, place, folder, given))
    return _outcome(rounds, given.clients)


def _round(system: System, nats_url: str, secret: str, place: Path, programs: Path, given: argparse.Namespace) -> Round:
    port = free_port()
    settings: dict[str, object] = {"nats_url": nats_url, "jwt_secret": secret, "gateway_port": port}
    settings |= {"max_connections": 100_000, "max_connections_per_user": 1_000_000, "log_level": "warning"}
    variables = {variable(name): str(value) for name, value in settings.items()}
    with running("doomed", [sys.executable, "-P", "-m", "gateway"], place, variables) as doomed:
        doomed.wait_for_port(port)
        pids = family(doomed.pid)
        survivor = system.pids["gateway"]
        before, there = _memory(pids), system._replace(socket_port=port)
        with (
            load.clients(_of_another_user(system, secret), programs, "probed", 1) as probed,
            load.clients(there, programs, "storm", given.clients, AT_ONCE, system.socket_port) as storm,
        ):
            kib = (_memory(pids) - before) / given.clients / KIB
            with load.probe(system, programs, probed.ids, given.every_ms, PROBE_SECONDS) as probe:
                time.sleep(CALM_SECONDS)
                calm = probe.end()
            with load.probe(system, programs, probed.ids, given.every_ms, PROBE_SECONDS) as probe:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                worked = cpu_seconds(survivor)
                back = storm.come_back()
                worked = cpu_seconds(survivor) - worked
                noticed = probe.end()
    if back.renamed:
        raise Missing(f"{back.renamed} of {given.clients} clients have got another id")
    return Round(back.back, 1000 * worked / given.clients, kib, calm, noticed)


def _of_another_user(system: System, secret: str) -> System:
    """Return the system for a client whose input does not share its turns with that of the others."""
    return system._replace(app_token=mint(secret, "probed-user", APP, TOKEN_SECONDS))


def _memory(pids: Sequence[int]) -> int:
    """Return the memory of a gateway, which is the largest process of its family."""
    return max(map(resident_bytes, pids))


def _outcome(rounds: Sequence[Round], clients: int) -> Outcome:
    rows = [
        (f"{clients:,} clients registered again, s", spread(one.back_seconds for one in rounds)),
        ("CPU of their gateway for each, ms", spread(one.cpu_ms for one in rounds)),
        ("memory of a client that may resume, KiB", spread(one.kib for one in rounds)),
        ("longest pause of a command meanwhile, ms", spread(one.storm.max_us / 1000 for one in rounds)),
        ("... its p99, ms", spread(one.storm.p99_us / 1000 for one in rounds)),
        ("... beforehand, ms", spread(one.calm.max_us / 1000 for one in rounds)),
    ]
    table = Table(["coming back", "median (min-max) of rounds"], [[what, found.shown()] for what, found in rows])
    figures = {
        f"reconnects.{clients}.back_seconds": rows[0][1].median,
        "reconnects.kib": rows[2][1].median,
        f"reconnects.{clients}.longest_pause_ms": max(one.storm.max_us for one in rounds) / 1000,
    }
    as_json = [{**one._asdict(), "calm": one.calm._asdict(), "storm": one.storm._asdict()} for one in rounds]
    return Outcome([table], figures, {"clients": clients, "rounds": as_json})


if __name__ == "__main__":
    main()
