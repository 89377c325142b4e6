"""The deployed configuration, as the real server reads it."""

import subprocess

import pytest
from support.nats.nats_server import binary
from support.nats.template import Template
from support.paths import ROOT

DEPLOYED = ROOT / "deploy/nats.conf"


def check(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [binary(), "-t", "-c", str(DEPLOYED)], env=variables, capture_output=True, text=True, timeout=30
    )


def test_server_accepts_the_deployed_configuration() -> None:
    checked = check(Template().variables)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("name", sorted(Template().variables))
def test_server_refuses_to_run_without_a_secret(name: str) -> None:
    variables = Template().variables
    del variables[name]
    checked = check(variables)
    assert checked.returncode == 1
    assert name in checked.stderr
