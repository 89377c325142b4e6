#!/usr/bin/env python3
"""Events: the rate from applications to a subscriber on NATS and into the stream, and the delay.

Each publishing client has one event in flight at a time. With an id, that lasts until the gateway's `ack` says that the
stream has it. Without one, it lasts until a `ping` sent right behind it is answered, so that the gateway sets the pace.
After each measurement three counts are compared: events sent, received by the subscriber, held by the stream.
"""

import argparse
import asyncio
import contextlib
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import nats
from measuring import load, report
from measuring.figures import spread
from measuring.load import Clients, Published, said, tell
from measuring.processes import cpu_seconds, wait_for
from measuring.report import Outcome, Table
from measuring.systems import System, agentbridge
from measuring.systems import nats as nats_server
from measuring.tools import HERE, Missing

from protocol.runtime.streams.stores import events_of

STORED_SECONDS = 20
WARM_UP_SECONDS = 1.0
KINDS = {False: "without ids", True: "with ids"}


class Received(NamedTuple):
    """The subscriber's counts: different events, repetitions, and microseconds from application to subscriber."""

    events: int
    twice: int
    p50_us: float
    p99_us: float
    max_us: float


class Slice(NamedTuple):
    """Some clients publishing for some seconds. Times are in milliseconds, CPU in microseconds an event."""

    ids: bool
    publishers: int
    per_second: float
    ack_p50: float
    ack_p99: float
    reader_p50: float
    reader_p99: float
    cpu: float
    processes: dict[str, float]


class Bench(NamedTuple):
    """Everything that runs."""

    system: System
    nats_url: str
    clients: Clients
    reader: subprocess.Popen[bytes]


def main() -> None:
    """Measure and print."""
    parser = report.options("Publish events from applications to a NATS subscriber and into the stream.")
    parser.add_argument(
        "--publishers", type=report.numbers, default=[1, 32, 256], help="publishing clients, with commas"
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--seconds", type=float, default=2, help="how long each measurement takes")
    report.run(parser, measure)


def measure(given: argparse.Namespace, folder: Path) -> Outcome:
    """Run all rounds."""
    slices: list[Slice] = []
    with _everything(folder, max(given.publishers)) as bench:
        report.progress("warming up")
        _slice(bench, max(given.publishers), min(WARM_UP_SECONDS, given.seconds), ids=False)
        for number in range(given.rounds):
            report.progress(f"round {number + 1} of {given.rounds}")
            for publishers in given.publishers:
                slices += [_slice(bench, publishers, given.seconds, ids=ids) for ids in KINDS]
    return _outcome(slices, given.publishers)


@contextlib.contextmanager
def _everything(folder: Path, clients: int) -> Iterator[Bench]:
    with (
        nats_server(folder) as (nats_url, nats_pid),
        agentbridge(folder, secrets.token_urlsafe(48), nats_url) as system,
        load.clients(system, folder, "all", clients) as connected,
        _reader(nats_url) as reader,
    ):
        pids = {**system.pids, "nats-server": nats_pid}
        yield Bench(system._replace(pids=pids), nats_url, connected, reader)


@contextlib.contextmanager
def _reader(nats_url: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "measuring.event_reader", nats_url]
    with subprocess.Popen(command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            said(process, "the subscriber")
            yield process
        finally:
            process.kill()


def _slice(bench: Bench, publishers: int, seconds: float, *, ids: bool) -> Slice:
    stored = _stored(bench.nats_url)
    before = {name: cpu_seconds(pid) for name, pid in bench.system.pids.items()}
    sent = bench.clients.publish(publishers, seconds, ids=ids)
    tell(bench.reader, str(sent.events))
    got = Received(**said(bench.reader, "the subscriber"))
    used = {name: (cpu_seconds(pid) - before[name]) / sent.events * 1e6 for name, pid in bench.system.pids.items()}
    _check(bench.nats_url, sent, got, stored)
    return Slice(
        ids,
        publishers,
        sent.events / sent.seconds,
        sent.p50_us / 1000,
        sent.p99_us / 1000,
        got.p50_us / 1000,
        got.p99_us / 1000,
        sum(used.values()),
        used,
    )


def _check(nats_url: str, sent: Published, got: Received, stored_before: int) -> None:
    """Raise `Missing` if an event was refused, lost or came twice, `TimeoutError` if the stream lacks one."""
    if sent.refused or got.twice or got.events != sent.events:
        raise Missing(f"{sent.events} events were sent, {sent.refused} refused; {got.events} came, {got.twice} twice")
    wait_for("the storing of all events", lambda: _stored(nats_url) - stored_before == sent.events, STORED_SECONDS)


def _stored(nats_url: str) -> int:
    """Return how many messages the stream has ever stored; those that it holds are bounded by its size."""
    return asyncio.run(_count_stored(nats_url))


async def _count_stored(nats_url: str) -> int:
    async with await nats.connect(nats_url) as client:
        return (await client.jsm().stream_info(events_of("default").stream)).state.last_seq


# --- results ---


def _outcome(slices: Sequence[Slice], levels: Sequence[int]) -> Outcome:
    groups = [
        [one for one in slices if (one.publishers, one.ids) == (publishers, ids)]
        for publishers in levels
        for ids in KINDS
    ]
    figures = {
        f"events.{'ids' if ids else 'plain'}.{publishers}.per_second": spread(one.per_second for one in group).median
        for group in groups
        for ids, publishers in [group[0][:2]]
    }
    return Outcome([_measured(groups), _shares(groups)], figures, {"slices": [one._asdict() for one in slices]})


def _measured(groups: Sequence[Sequence[Slice]]) -> Table:
    columns = {"per_second": 0, "ack_p50": 2, "ack_p99": 2, "reader_p50": 2, "reader_p99": 2, "cpu": 0}
    rows = [
        [
            *(KINDS[group[0].ids], str(group[0].publishers)),
            *(spread(getattr(one, column) for one in group).shown(digits) for column, digits in columns.items()),
        ]
        for group in groups
    ]
    headers = ["events", "publishers", "events/s", "answered p50 ms", "p99 ms", "at subscriber p50 ms", "p99 ms"]
    return Table([*headers, "CPU us an event"], rows)


def _shares(groups: Sequence[Sequence[Slice]]) -> Table:
    return Table(["CPU us an event", "publishers", "processes"], [_share(group) for group in groups])


def _share(group: Sequence[Slice]) -> list[str]:
    processes = {name: spread(one.processes[name] for one in group).median for name in group[0].processes}
    shown = ", ".join(f"{name} {used:.0f}" for name, used in processes.items() if used >= 1)
    return [KINDS[group[0].ids], str(group[0].publishers), shown]


if __name__ == "__main__":
    main()
