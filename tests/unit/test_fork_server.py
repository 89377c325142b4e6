"""Forked processes behave as those that are started by name."""

import json
import signal
from pathlib import Path

import pytest
from support.fork_server import ForkServer
from support.processes.child import FORKED, Process
from support.settings import environment
from support.wait import until

NOWHERE = "nats://127.0.0.1:1"
SECONDS = 20


@pytest.mark.parametrize("module", FORKED)
async def test_wrong_setting_ends_both_with_the_same_words(module: str, tmp_path: Path) -> None:
    variables = environment(NOWHERE, drain_seconds="x", log_format="json")
    ways = {"forked": variables, "by name": {**variables, "LANG": "C"}}
    said = []
    for way, given in ways.items():
        process = Process(module, tmp_path / way, given).launch()
        assert await process.ended() == 2
        said.append({**json.loads(process.log), "at": ""})
    assert said[0] == said[1]
    assert "AGENTBRIDGE_DRAIN_SECONDS" in said[0]["message"]


async def test_signals_reach_a_forked_process_and_its_end_is_known(tmp_path: Path) -> None:
    process = Process("gateway", tmp_path, environment(NOWHERE)).launch()
    await until(lambda: "NATS" in process.log, SECONDS)
    process.freeze()
    process.signal(signal.SIGTERM)
    assert process.running
    process.thaw()
    assert await process.ended() == 0
    killed = Process("gateway", tmp_path, environment(NOWHERE)).launch()
    assert await killed.kill() == -signal.SIGKILL


async def test_processes_that_are_left_end_with_their_server(tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    out.touch()
    err.touch()
    server = ForkServer("registry")
    pid = server.start([], environment(NOWHERE), out, err).pid
    server.close()
    await until(lambda: not Path(f"/proc/{pid}").exists(), SECONDS)
