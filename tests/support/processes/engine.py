"""Docker: whether an engine answers, and what its command line says."""

import functools
import os
import shutil
import subprocess

import pytest

VERSION_SECONDS = 20
COMMAND_SECONDS = 60


def require_engine() -> None:
    """Skip the test where no Docker engine with Compose answers; fail it where one is required."""
    missing = _missing()
    if not missing:
        return
    if os.environ.get("AGENTBRIDGE_TEST_REQUIRE_DOCKER") == "1":  # noqa: TID251  a setting of the tests
        pytest.fail(missing)
    pytest.skip(missing)


def docker(*arguments: str) -> str:
    """Run a docker command and return what it prints to standard output; where it fails, say why."""
    command = ["docker", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr[-4000:]}"
    return done.stdout


@functools.cache
def _missing() -> str:
    """Return what keeps tests from running containers, or nothing."""
    if shutil.which("docker") is None:
        return "no Docker: the command docker is not on PATH"
    for command in (["version"], ["compose", "version"]):
        done = subprocess.run(
            ["docker", *command], capture_output=True, text=True, check=False, timeout=VERSION_SECONDS
        )
        if done.returncode != 0:
            return f"no Docker: `docker {' '.join(command)}` says: {done.stderr.strip()}"
    return ""
