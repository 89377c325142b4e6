"""The frame of every bench: options, a folder to work in, tables or JSON, bars, the exit code."""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measuring import tools
from measuring.bars import FLOOR, GOAL, Verdict, all_met, judge
from measuring.tools import Missing
from protocol.errors import ConfigurationError

EXIT_BARS_MISSED = 1
EXIT_CANNOT_RUN = 2
GAP = "  "


class Table(NamedTuple):
    """Rows below their headers; the first column is text, the others are figures."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]

    def lines(self) -> Iterator[str]:
        """Yield its lines, the columns aligned."""
        widths = [max(map(len, column)) for column in zip(self.headers, *self.rows, strict=True)]
        for row in (self.headers, *self.rows):
            first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield GAP.join([first, *others]).rstrip()


class Outcome(NamedTuple):
    """The results of a bench: tables for people, figures for bars, and everything for programs."""

    tables: Sequence[Table]
    figures: Mapping[str, float]
    details: Mapping[str, Any]


Measure = Callable[[argparse.Namespace, Path], Outcome]


def options(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of all benches."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--strict",
        nargs="?",
        const=FLOOR,
        choices=[FLOOR, GOAL],
        help="exit with 1 where a floor, or with `goal` any bar, is missed",
    )
    return parser


def run(parser: argparse.ArgumentParser, measure: Measure) -> None:
    """Measure in a folder of its own, print, and exit: 0, 1 for missed bars under --strict, 2 if it cannot run."""
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with tempfile.TemporaryDirectory(prefix="agentbridge-bench-") as folder:
            tools.build(Path(folder))
            outcome = measure(given, Path(folder))
    except (Missing, ConfigurationError, TimeoutError) as exc:
        print(f"{parser.prog}: {exc}", file=sys.stderr)
        sys.exit(EXIT_CANNOT_RUN)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    verdicts = judge(outcome.figures)
    print(_as_json(outcome, verdicts) if given.json else _as_text(outcome, verdicts))
    sys.exit(EXIT_BARS_MISSED if given.strict and not all_met(verdicts, given.strict) else 0)


def numbers(text: str) -> list[int]:
    """Return the numbers of an option such as `1,32,256`."""
    return [int(part) for part in text.split(",")]


def progress(text: str) -> None:
    """Print progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Return the properties of the machine that figures depend on."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "python": platform.python_version(),
        "load": [round(load, 1) for load in os.getloadavg()],
    }


def _as_text(outcome: Outcome, verdicts: Sequence[Verdict]) -> str:
    here = machine()
    about = f"{here['cpus']} CPUs ({here['processor']}), Python {here['python']}, load average now {here['load'][0]}"
    tables = [*outcome.tables, *([_bars(verdicts)] if verdicts else [])]
    return "\n\n".join([about, *("\n".join(table.lines()) for table in tables)])


def _as_json(outcome: Outcome, verdicts: Iterable[Verdict]) -> str:
    bars = [verdict.as_json() for verdict in verdicts]
    return json.dumps({"machine": machine(), **outcome.details, "figures": dict(outcome.figures), "bars": bars})


def _bars(verdicts: Iterable[Verdict]) -> Table:
    rows = [
        [bar.what, bar.kind, bar.needed, f"{value:.2f}", "met" if met else "not met"] for bar, value, met in verdicts
    ]
    return Table(["bar", "kind", "needed", "measured", ""], rows)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    return text.partition("model name")[2].partition(":")[2].partition("\n")[0].strip() or platform.machine()
