"""The arrows of the process picture, read from the imports; and the few rules that no type checker knows."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOUNDATION = "protocol/*.py"
ARROWS = {
    "gateway": {"protocol"},
    "agent_api": {"protocol"},
    "registry": {"protocol"},
    "agentbridge": {"protocol"},
    "protocol": set[str](),
}
MODULES = sorted(path for package in ARROWS for path in (ROOT / package).rglob("*.py"))
SETTINGS = ROOT / "protocol/runtime/settings.py"


def imports_of(path: Path) -> Iterator[str]:
    """Yield what a module imports, by its full dotted name, wherever in the module it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def test_packages_are_the_ones_that_are_shipped() -> None:
    shipped = re.search(r"^packages = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert shipped is not None
    assert set(re.findall(r'"(\w+)"', shipped[1])) == set(ARROWS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_along_the_arrows(path: Path) -> None:
    own = package_of(path)
    used = {name.split(".")[0] for name in imports_of(path)} & set(ARROWS)
    assert used - {own} <= ARROWS[own]


@pytest.mark.parametrize("path", sorted(ROOT.glob(FOUNDATION)), ids=lambda path: path.name)
def test_foundation_needs_only_the_standard_library_and_msgspec(path: Path) -> None:
    names = list(imports_of(path))
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names | {"msgspec", "protocol"}
    assert not [name for name in names if name.startswith("protocol.runtime")]


@pytest.mark.parametrize("package", ["gateway", "agent_api", "registry", "agentbridge"])
def test_product_does_not_need_the_tests(package: str) -> None:
    roots = {name.split(".")[0] for path in (ROOT / package).rglob("*.py") for name in imports_of(path)}
    assert not roots & {"tests", "support", "pytest", "hypothesis", "testcontainers"}


def test_environment_is_read_in_one_place() -> None:
    readers = {path for path in MODULES if re.search(r"\b(environ|getenv|putenv)\b", path.read_text())}
    assert readers <= {SETTINGS}


def test_tests_hide_no_package() -> None:
    assert not (ROOT / "tests/__init__.py").exists()
    assert not list((ROOT / "tests/unit").rglob("__init__.py"))


def test_readme_tells_the_arrows_that_are() -> None:
    """The README says in one sentence which packages import which; that sentence is checked, so it has to stay."""
    readme = " ".join((ROOT / "README.md").read_text().split())
    sentence = re.search(r"((?:`\w+`(?:,| and)? )+)import `(\w+)` and nothing of each other", readme)
    assert sentence is not None
    told = {package: {sentence[2]} for package in re.findall(r"`(\w+)`", sentence[1])}
    assert told == {package: needs for package, needs in ARROWS.items() if needs}
