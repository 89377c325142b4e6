"""Every bench runs, with sizes that say nothing about speed, and prints what it promises."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

PATH = os.environ["PATH"]  # noqa: TID251  children need it
SECONDS = 160
CANNOT_RUN = 2
SMALL_COMMANDS = ("--levels=1,3", "--rounds=1", "--seconds=0.5", "--warm-up=1", "--clients=3", "--agents=2")
SMALL_EVENTS = ("--publishers=1,3", "--rounds=1", "--seconds=0.2")
SMALL_CONNECTIONS = ("--clients=50", "--rounds=1")


def without(*programs: str) -> bool:
    return not all(map(shutil.which, programs))


needs_compiler = pytest.mark.skipif(without("gcc"), reason="gcc is not here, and the benches compile their load")
needs_peers = pytest.mark.skipif(without("node", "npm", "redis-server"), reason="what the peers run on is not here")


def bench(name: str, *arguments: str, path: str = PATH) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bench" / f"{name}.py"), *arguments]
    return subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, timeout=SECONDS, check=False)


def found(name: str, *arguments: str) -> dict[str, Any]:
    ended = bench(name, *arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


@needs_compiler
@needs_peers
def test_commands_are_compared_with_both_designs() -> None:
    answer = found("commands", *SMALL_COMMANDS)
    systems = {one["name"] for one in answer["slices"]}
    assert systems == {"agentbridge", "agentbridge, direct agents", "express-memory", "express-redis"}
    assert len(answer["slices"]) == len(systems) * len([1, 3])
    assert all(one["per_second"] > 0 for one in answer["slices"])
    assert {"commands.express-redis.3.per_second", "commands.direct.3.cpu"} <= set(answer["figures"])


@needs_compiler
def test_commands_are_measured_without_peers_too() -> None:
    ended = bench("commands", *SMALL_COMMANDS, "--peers=none", "--agents=0", "--strict")
    assert ended.returncode == 0, ended.stderr
    assert "p99 ms" in ended.stdout
    assert "agent_api" in ended.stdout
    assert "ratio" not in ended.stdout


@needs_compiler
def test_commands_with_fast_paths_are_measured_beside_those_without() -> None:
    answer = found("commands", *SMALL_COMMANDS, "--peers=none", "--agents=0", "--fast-paths=both")
    ours = {"agentbridge", "agentbridge, fast paths off"}
    assert {one["name"] for one in answer["slices"]} == ours
    assert all(one["per_second"] > 0 for one in answer["slices"])
    assert {(one["ours"], one["peer"]) for one in answer["ratios"]} == {("agentbridge", "agentbridge, fast paths off")}
    assert "fast_paths.off.3.cpu" in answer["figures"]
    assert answer["bars"] == []


@needs_compiler
def test_connections_are_timed_and_weighed() -> None:
    answer = found("connections", *SMALL_CONNECTIONS)
    (only,) = answer["rounds"]
    assert {"gateway", "registry", "nats-server", "agent_api"} <= set(only["memory"])
    assert only["registered_seconds"] > 0
    assert only["storm"]["wrong"] == 0
    assert {bar["figure"] for bar in answer["bars"]} == {"connections.kib"}


@needs_compiler
def test_connections_are_told_in_tables() -> None:
    ended = bench("connections", *SMALL_CONNECTIONS)
    assert ended.returncode == 0, ended.stderr
    assert "50 clients connected, s" in ended.stdout
    assert "memory a client, KiB" in ended.stdout
    assert "gateway memory a connection, KiB  floor  <= 24" in ended.stdout


@needs_compiler
def test_events_are_all_received_and_stored() -> None:
    answer = found("events", *SMALL_EVENTS)
    assert [(one["publishers"], one["ids"]) for one in answer["slices"]] == [
        *[(1, False), (1, True)],
        *[(3, False), (3, True)],
    ]
    assert all(one["per_second"] > 0 for one in answer["slices"])


@needs_compiler
def test_floods_are_sent_to_every_port() -> None:
    kinds = "pings,chunks,commands,questions,bad socketio,flood agents of the SDK"
    answer = found("floods", "--sockets=3", "--seconds=0.3", f"--kinds={kinds}", "--no-strict")
    floods = [one for one in answer["floods"] if one["flood"] is not None]
    assert len(answer["floods"]) - len(floods) == 6, "it is calm three times, for commands and for questions"
    sent_to = {(one["flood"]["target"], one["flood"]["kind"]) for one in floods}
    assert sent_to == {
        *[("gateway", "pings"), ("agent_api", "pings"), ("agent_api", "chunks")],
        *[("gateway", "commands"), ("registry", "questions")],
        *[("gateway", "bad socketio"), ("agent_api", "flood agents of the SDK")],
    }
    assert answer["endings"].keys() == {"gateway", "agent_api", "registry"}
    assert all(one["sent"] > 0 and one["neighbour"]["answers"] > 0 for one in floods)
    assert answer["figures"]["floods.hold_ms"] > 0


@needs_compiler
def test_tools_are_called_by_each_way_in() -> None:
    answer = found("tool_calls", "--rounds=1", "--calls=5", "--clients=20")
    assert {way["name"] for way in answer["ways"]} == {
        "POST /api/command",
        "POST /api/tools/{name}",
        "MCP 2026-07-28, tools/call",
        "MCP 2025-11-25, tools/call",
        "MCP 2026-07-28, tools/list",
    }
    assert all(way["ms"] > 0 for way in answer["ways"])


@needs_compiler
def test_clients_come_back_after_the_death_of_their_gateway() -> None:
    answer = found("reconnects", "--clients=20", "--rounds=1")
    assert answer["figures"]["reconnects.20.back_seconds"] > 0


@pytest.mark.parametrize("name", ["commands", "connections", "events", "floods", "reconnects", "tool_calls"])
def test_missing_compiler_is_told_in_a_sentence(name: str, tmp_path: Path) -> None:
    ended = bench(name, path=str(tmp_path))
    assert ended.returncode == CANNOT_RUN
    assert ended.stderr == (
        f"{name}.py: gcc is not on this machine: install it (Debian: apt-get install gcc libc6-dev)\n"
    )


@needs_compiler
def test_missing_peer_can_be_left_out(tmp_path: Path) -> None:
    for program in ("gcc", "as", "ld"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    ended = bench("commands", *SMALL_COMMANDS, path=str(tmp_path))
    assert ended.returncode == CANNOT_RUN
    assert "node is not on this machine" in ended.stderr
    assert "--peers none" in ended.stderr
