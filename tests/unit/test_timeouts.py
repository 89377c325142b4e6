"""`docs/timeouts.md` names each duration of the code with its value."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.paths import ROOT

FOLDERS = ("protocol", "gateway", "agent_api", "registry", "agentbridge")
_ROW = re.compile(r"^\| `([\w/]+\.py)` `(\w+)` \| `([^`]+)` \|", re.MULTILINE)


class Duration(NamedTuple):
    """A constant of the code, and its value as Python writes it."""

    path: str
    name: str
    value: str


def test_page_names_each_duration_with_its_value() -> None:
    documented = [Duration(*row) for row in _ROW.findall((ROOT / "docs/timeouts.md").read_text())]
    assert sorted(documented) == sorted(duration for folder in FOLDERS for duration in durations(ROOT / folder))


def durations(folder: Path) -> Iterator[Duration]:
    for path in folder.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                if isinstance(target, ast.Name) and re.search(r"(?<!NANO)_(SECONDS|MS)$", target.id):
                    yield Duration(str(path.relative_to(ROOT)), target.id, ast.unparse(node.value))
