"""The bars that the benches must reach, in one table.

A floor must hold in every version; a goal is the design's aim. A figure is named by its bench and its quantity. Ratios
are ours divided by the peer's, so for durations less is better.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

FLOOR, GOAL = "floor", "goal"


class Bar(NamedTuple):
    """The least or the greatest value that a figure may have."""

    kind: str
    figure: str
    what: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, value: float) -> bool:
        """Tell whether a figure reaches it."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    @property
    def needed(self) -> str:
        """The bar as a table shows it."""
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


BARS = (
    Bar(FLOOR, "commands.express-redis.32.per_second", "commands/s beside express-redis, 32 in flight", at_least=1.5),
    Bar(FLOOR, "commands.express-redis.32.p99", "their p99 beside express-redis", at_most=1.0),
    Bar(GOAL, "commands.express-redis.32.per_second", "commands/s beside express-redis, 32 in flight", at_least=3),
    Bar(GOAL, "commands.express-redis.32.p99", "their p99 beside express-redis", at_most=0.33),
    Bar(GOAL, "commands.express-redis.32.cpu", "CPU a command beside express-redis, 32 in flight", at_most=0.33),
    Bar(GOAL, "commands.express-memory.32.per_second", "commands/s beside express-memory, 32 in flight", at_least=2),
    Bar(GOAL, "commands.express-memory.1.p50", "p50 beside express-memory, one in flight", at_most=1.0),
    Bar(
        GOAL,
        "commands.direct.32.per_second",
        "direct agents' commands/s beside express-redis, 32 in flight",
        at_least=5,
    ),
    Bar(FLOOR, "connections.kib", "gateway memory a connection, KiB", at_most=24),
    Bar(GOAL, "connections.kib", "gateway memory a connection, KiB", at_most=16),
    Bar(FLOOR, "connections.10000.registered_seconds", "seconds until 10,000 clients are registered", at_most=8),
    Bar(GOAL, "connections.10000.registered_seconds", "seconds until 10,000 clients are registered", at_most=5),
    Bar(FLOOR, "reconnects.kib", "gateway memory a connection that may resume, KiB", at_most=18),
    Bar(FLOOR, "reconnects.10000.back_seconds", "seconds until 10,000 clients of a dead gateway are back", at_most=10),
    Bar(FLOOR, "reconnects.10000.longest_pause_ms", "longest pause of a command meanwhile, ms", at_most=250),
    Bar(FLOOR, "tools.MCP 2026-07-28, tools/call.cpu_us", "CPU of the agent API a modern tools/call, us", at_most=2000),
    Bar(FLOOR, "tools.MCP 2025-11-25, tools/call.cpu_us", "CPU of the agent API a legacy tools/call, us", at_most=4000),
    Bar(FLOOR, "tools.10000 clients, the same 20 tools.ms", "a list of 128 of 10,000 x 20 tools, ms", at_most=20),
    Bar(
        FLOOR,
        "tools.10000 clients, 20 tools of their own each.ms",
        "a list of 128 of 10,000 x 20 tools of their own, ms",
        at_most=20,
    ),
    Bar(FLOOR, "floods.p95_ratio", "a neighbour's p95 in any flood beside calm", at_most=3),
    Bar(FLOOR, "floods.refused", "a neighbour's commands that were refused in any flood", at_most=0),
    Bar(FLOOR, "floods.unanswered", "a neighbour's commands that nobody answered, or wrongly", at_most=0),
    Bar(FLOOR, "floods.gateways_lost", "gateways that a registry took for lost", at_most=0),
    Bar(FLOOR, "floods.tracebacks", "tracebacks in the logs of all processes", at_most=0),
    Bar(FLOOR, "floods.ending_seconds", "longest end of a process after SIGTERM in a flood, s", at_most=1),
    Bar(FLOOR, "floods.peak_mb", "most memory of a process in any flood, MB", at_most=700),
    Bar(FLOOR, "floods.hold_ms", "longest hold of an event loop in any flood, CPU ms", at_most=20),
    Bar(FLOOR, "connections.10000.longest_pause_ms", "longest pause of a command meanwhile, ms", at_most=250),
)


class Verdict(NamedTuple):
    """A bar and the figure that was held against it."""

    bar: Bar
    value: float
    met: bool

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "kind": self.bar.kind,
            "figure": self.bar.figure,
            "needed": self.bar.needed,
            "value": self.value,
            "met": self.met,
        }


def judge(figures: Mapping[str, float]) -> list[Verdict]:
    """Hold every figure that has bars against them."""
    return [Verdict(bar, figures[bar.figure], bar.met(figures[bar.figure])) for bar in BARS if bar.figure in figures]


def all_met(verdicts: list[Verdict], kind: str) -> bool:
    """Tell whether all bars of a kind are met; goals are beyond floors, so they take those along."""
    return all(verdict.met for verdict in verdicts if kind == GOAL or verdict.bar.kind == FLOOR)
