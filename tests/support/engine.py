"""Docker: whether an engine answers, and what its command line says."""

import functools
import os
import shutil
import subprocess

import pytest

VERSION_SECONDS = 20
COMMAND_SECONDS = 240


def require_engine() -> None:
    """Skip the test where no Docker engine with Compose answers; fail it where one is required."""
    missing = _missing()
    if not missing:
        return
    if os.environ.get("AGENTBRIDGE_TEST_REQUIRE_DOCKER") == "1":  # noqa: TID251  a setting of the tests
        pytest.fail(missing)
    pytest.skip(missing)


def docker(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """Run a docker command and return what it prints to standard output; where it fails, say why."""
    done = run(*arguments, environment=environment)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr[-4000:]}"
    return done.stdout


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a docker command, whatever comes of it."""
    command = ["docker", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=COMMAND_SECONDS
    )


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
