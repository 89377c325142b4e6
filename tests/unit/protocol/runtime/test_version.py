"""Versions: ours, which pyproject.toml alone knows, and those of libraries, which fast paths depend on."""

import importlib.util
import re
import tomllib
from collections.abc import Callable
from importlib import metadata
from typing import Any
from unittest.mock import Mock

import pytest
from support.paths import ROOT

from protocol.runtime import version

SEMANTIC = r"\d+\.\d+\.\d+(-[\w.-]+)?(\+[\w.-]+)?"


def loaded_anew() -> Any:
    """Return the module as a process that has just begun has it."""
    spec = importlib.util.spec_from_file_location(version.__name__, version.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == version.DISTRIBUTION
    assert metadata.version(version.DISTRIBUTION) == version.SERVICE_VERSION


def test_version_of_a_checkout_that_is_not_installed_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", Mock(side_effect=metadata.PackageNotFoundError))
    assert loaded_anew().SERVICE_VERSION == version.NOT_INSTALLED
    assert re.fullmatch(SEMANTIC, version.NOT_INSTALLED), "NATS micro wants a semantic version"


def test_version_is_written_nowhere_else() -> None:
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    packages = ("protocol", "gateway", "agent_api", "registry", "agentbridge")
    modules = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert [path for path in modules if f'"{written}"' in path.read_text()] == []


# --- libraries ---


Allows = Callable[[str, str], bool]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Allows]:
    """Have every library installed in a version; return `allows_fast_path()` of a process that has just begun."""

    def begun(installed: str) -> Allows:
        monkeypatch.setattr(metadata, "version", lambda _: installed)
        allows: Allows = loaded_anew().allows_fast_path
        return allows

    return begun


@pytest.mark.parametrize("library", version.TESTED)
def test_installed_libraries_are_those_that_were_tested(library: str) -> None:
    paths = [name for name, through in version.FAST_PATHS.items() if through == library]
    assert paths
    assert all(version.allows_fast_path(name, "on") for name in paths)
    pinned = (ROOT / "requirements/runtime.txt").read_text()
    assert re.search(rf"^{library}=={re.escape(version.TESTED[library])}[.\d]* ", pinned, re.MULTILINE)


@pytest.mark.parametrize("installed", ["2.16", "2.16.0", "2.16.9", "2.16.1rc1"])
def test_fast_paths_run_with_every_patch_of_a_tested_version(
    installed: str, install: Callable[[str], Allows], caplog: pytest.LogCaptureFixture
) -> None:
    assert install(installed)("nats_in", "on")
    assert caplog.records == []


@pytest.mark.parametrize("installed", ["2.17.0", "2.15.0", "3.16.0", "2.160.0", "nightly"])
def test_fast_paths_are_off_with_another_version_and_one_line_says_so(
    installed: str, install: Callable[[str], Allows], caplog: pytest.LogCaptureFixture
) -> None:
    allows = install(installed)
    assert not any(allows("nats_in", "on") for _ in range(3))
    line = f"nats-py {installed} was not tested with AGENTBRIDGE_FAST_PATHS=on, but 2.16 was: its fast paths are off"
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", line)]


def test_switch_that_is_off_needs_no_warning(
    install: Callable[[str], Allows], caplog: pytest.LogCaptureFixture
) -> None:
    allows = install("99.0")
    assert not any(allows(name, "off") for name in version.FAST_PATHS)
    assert caplog.records == []


def test_each_fast_path_may_be_on_alone() -> None:
    allowed = [name for name in version.FAST_PATHS if version.allows_fast_path(name, "nats_in,http_out")]
    assert allowed == ["nats_in", "http_out"]
