"""The version that processes tell is that of the distribution, which pyproject.toml alone knows."""

import re
import tomllib
from importlib import metadata

import pytest
from support.paths import ROOT

from protocol.runtime import version

SEMANTIC = r"\d+\.\d+\.\d+(-[\w.-]+)?(\+[\w.-]+)?"


def test_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == version.DISTRIBUTION
    assert metadata.version(version.DISTRIBUTION) == version.SERVICE_VERSION


def test_version_of_a_checkout_that_is_not_installed_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "DISTRIBUTION", "agentbridge-nats-that-nobody-installed")
    assert version._installed() == version.NOT_INSTALLED
    assert re.fullmatch(SEMANTIC, version.NOT_INSTALLED), "NATS micro wants a semantic version"


def test_version_is_written_nowhere_else() -> None:
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    packages = ("protocol", "gateway", "agent_api", "registry", "agentbridge")
    modules = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert [path for path in modules if f'"{written}"' in path.read_text()] == []
