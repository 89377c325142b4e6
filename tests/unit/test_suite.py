"""The suite itself: nothing in it waits without a bound, and whoever starts it may have it ignore Ctrl-C."""

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

SECONDS = 60
IGNORING_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
)
INTERRUPTED = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(30)"

CHILD_TEST = f"""
import subprocess, sys

def test_child_ends_by_ctrl_c():
    assert subprocess.run([sys.executable, "-c", {INTERRUPTED!r}], timeout=20).returncode == {-signal.SIGINT}
"""
HANGING_TESTS = """
import asyncio, threading
import pytest

def test_thread():
    threading.Event().wait()

async def test_loop():
    await asyncio.Event().wait()

@pytest.fixture
def stuck():
    yield
    threading.Event().wait()

def test_fixture(stuck):
    pass

def test_that_ends():
    pass
"""


def run_suite(folder: Path, tests: str, *starter: str, phase_seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a suite of one file under the limits of ours."""
    (folder / "test_inner.py").write_text(tests)
    (folder / "pytest.ini").write_text(f"[pytest]\nasyncio_mode = auto\nphase_seconds = {phase_seconds}\n")
    command = [*starter, sys.executable, "-m", "pytest", "-q", "-p", "support.limits", "-p", "no:schemathesis"]
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "tests")}  # noqa: TID251  children need them
    return subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def test_wait_without_a_bound_fails_its_test_and_the_others_go_on(tmp_path: Path) -> None:
    ended = run_suite(tmp_path, HANGING_TESTS, phase_seconds=1)
    assert "2 failed, 2 passed, 1 error" in ended.stdout, ended.stdout
    assert ended.stdout.count("took more than 1 s; something waits without a bound") >= len(["thread", "loop", "stuck"])
    assert "most recent call first" in ended.stdout, "no stacks"


def test_children_end_by_ctrl_c_though_the_suite_was_started_with_it_ignored(tmp_path: Path) -> None:
    ended = run_suite(tmp_path, CHILD_TEST, sys.executable, "-c", IGNORING_CTRL_C, phase_seconds=30)
    assert ended.returncode == 0, ended.stdout


def calls(tree: ast.AST, name: str, bounded: bool = False) -> Iterator[tuple[ast.Call, bool]]:
    """Yield the calls of methods so named, and whether they stand inside an `asyncio.timeout`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name:
            yield node, bounded
        within = isinstance(node, ast.AsyncWith) and any("timeout" in ast.unparse(item) for item in node.items)
        yield from calls(node, name, bounded or within)


@pytest.mark.parametrize(
    ("method", "owner"), [("communicate", ""), ("run", "subprocess"), ("check_output", "subprocess")]
)
def test_every_wait_for_a_process_has_a_bound(method: str, owner: str) -> None:
    unbounded = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for call, bounded in calls(ast.parse(path.read_text()), method)
        if ast.unparse(call.func).startswith(owner)
        and not bounded
        and not any(keyword.arg == "timeout" for keyword in call.keywords)
    ]
    assert unbounded == []
