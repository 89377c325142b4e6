"""The deployed configuration, as the real server reads it."""

import subprocess
from pathlib import Path

from support.nats_server import binary

from agentbridge.nats_config import new_password, users

DEPLOYED = Path(__file__).parents[2] / "deploy/nats.conf"


def check(passwords: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binary(), "-t", "-c", str(DEPLOYED)], env=passwords, capture_output=True, text=True)


def test_server_accepts_the_deployed_configuration() -> None:
    checked = check({user.password_variable: new_password() for user in users(("default",))})
    assert checked.returncode == 0, checked.stderr


def test_server_refuses_to_run_without_a_password() -> None:
    checked = check({user.password_variable: new_password() for user in users(("default",))[1:]})
    assert checked.returncode == 1
    assert "AGENTBRIDGE_NATS_PASSWORD_GATEWAY" in checked.stderr
