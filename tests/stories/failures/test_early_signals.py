"""A signal at any moment of a process's start ends it with exit code 0."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.settings import environment

SECONDS = 20

# Sends a process the signal while it imports what takes long.
STOPPED_THERE = """
import importlib.abc, os, runpy, signal, sys
class Stop(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("fastapi", "uvloop"):
            os.kill(os.getpid(), int(sys.argv[2]))
sys.meta_path.insert(0, Stop())
runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=False)
"""


@pytest.mark.parametrize("module", ["gateway", "agent_api", "registry"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_the_imports_is_an_orderly_end(module: str, number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED_THERE, module, str(int(number))]
    with subprocess.Popen(command, env=environment("nats://127.0.0.1:1"), stderr=subprocess.PIPE) as process:
        try:
            _, said = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert (process.returncode, said) == (0, b"")
