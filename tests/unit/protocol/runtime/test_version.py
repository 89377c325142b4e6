"""Versions: ours, which pyproject.toml alone knows, and those of libraries, which fast paths depend on."""

import re
import tomllib
from collections.abc import Callable, Iterator
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


# --- libraries ---


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Have every library installed in a version."""
    version._is_tested.cache_clear()
    yield lambda installed: monkeypatch.setattr(metadata, "version", lambda _: installed)
    version._is_tested.cache_clear()


@pytest.mark.parametrize("library", version.TESTED)
def test_installed_libraries_are_those_that_were_tested(library: str) -> None:
    paths = [name for name, through in version.FAST_PATHS.items() if through == library]
    assert paths
    assert all(version.allows_fast_path(name, "on") for name in paths)
    pinned = (ROOT / "requirements/runtime.txt").read_text()
    assert re.search(rf"^{library}=={re.escape(version.TESTED[library])}[.\d]* ", pinned, re.MULTILINE)


@pytest.mark.parametrize("installed", ["2.16", "2.16.0", "2.16.9", "2.16.1rc1"])
def test_fast_paths_run_with_every_patch_of_a_tested_version(
    installed: str, install: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    install(installed)
    assert version.allows_fast_path("nats_in", "on")
    assert caplog.records == []


@pytest.mark.parametrize("installed", ["2.17.0", "2.15.0", "3.16.0", "2.160.0", "nightly"])
def test_fast_paths_are_off_with_another_version_and_one_line_says_so(
    installed: str, install: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    install(installed)
    assert not any(version.allows_fast_path(name, "on") for name in ("nats_in", "nats_out", "nats_in"))
    line = f"nats-py {installed} was not tested with AGENTBRIDGE_FAST_PATHS=on, but 2.16 was: its fast paths are off"
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", line)]


def test_switch_that_is_off_needs_no_warning(install: Callable[[str], None], caplog: pytest.LogCaptureFixture) -> None:
    install("99.0")
    assert not any(version.allows_fast_path(name, "off") for name in version.FAST_PATHS)
    assert caplog.records == []


def test_each_fast_path_may_be_on_alone() -> None:
    allowed = [name for name in version.FAST_PATHS if version.allows_fast_path(name, "nats_out,http_out")]
    assert allowed == ["nats_out", "http_out"]
