"""A signal at any moment of a process's start ends it with exit code 0."""

import itertools
import signal
import subprocess
import sys

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

# The same for `agentbridge COMMAND`: while it imports, or when it becomes the process.
COMMAND_STOPPED_THERE = """
import importlib.abc, os, runpy, sys
where, number, sys.argv = sys.argv[1], int(sys.argv[2]), ["agentbridge", *sys.argv[3:]]
class Stop(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == where:
            os.kill(os.getpid(), number)
def become(*arguments, become=os.execv):
    if where == "exec":
        os.kill(os.getpid(), number)
    become(*arguments)
os.execv = become
sys.meta_path.insert(0, Stop())
runpy.run_module("agentbridge", run_name="__main__", alter_sys=False)
"""


@pytest.mark.parametrize("module", ["gateway", "agent_api", "registry"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_the_imports_is_an_orderly_end(module: str, number: signal.Signals) -> None:
    assert ended(STOPPED_THERE, module, str(int(number))) == (0, b"")


@pytest.mark.parametrize(
    ("command", "where"),
    [("up", "click"), *itertools.product(("gateway", "agent-api", "registry"), ("click", "exec"))],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_before_a_command_has_become_its_process_is_an_orderly_end(
    command: str, where: str, number: signal.Signals
) -> None:
    assert ended(COMMAND_STOPPED_THERE, where, str(int(number)), command) == (0, b"")


def test_ctrl_c_during_the_imports_of_another_command_says_nothing() -> None:
    assert ended(COMMAND_STOPPED_THERE, "click", str(int(signal.SIGINT)), "clients") == (130, b"")


def test_command_that_is_to_ignore_ctrl_c_ignores_it_during_its_imports() -> None:
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)" + COMMAND_STOPPED_THERE
    assert ended(ignoring, "click", str(int(signal.SIGINT)), "--version") == (0, b"")


def ended(*arguments: str) -> tuple[int, bytes]:
    """Run a program to its end. Return its exit code, and what it said on standard error."""
    command = [sys.executable, "-c", *arguments]
    variables = environment("nats://127.0.0.1:1")
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            _, said = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    return process.returncode, said
