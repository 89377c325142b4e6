"""The examples of the documentation: the fenced blocks of all pages, and a place to type them in."""

import ast
import inspect
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from support.paths import ROOT
from support.processes.child import Process
from support.processes.up import Up

COMING_FROM_PAGES = sorted(ROOT.glob("docs/coming-from/*.md"))
REFERENCE_PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")])
PAGES = [*REFERENCE_PAGES, *COMING_FROM_PAGES]
DEFAULT_API_URL = "http://127.0.0.1:8000"
_FENCED = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block. `language` is empty for pictures."""

    page: str
    line: int
    language: str
    code: str

    @property
    def lines(self) -> list[str]:
        """Its commands, each on a line of its own, without comments."""
        return [line.split("  #")[0].rstrip() for line in self.code.splitlines()]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    text = page.read_text()
    for found in _FENCED.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(str(page.relative_to(ROOT)), line, found["language"], found["code"])


class Examples:
    """All blocks of some pages, and those that a test has taken care of."""

    def __init__(self, pages: Iterable[Path] = REFERENCE_PAGES) -> None:
        self.all = [block for page in pages for block in blocks(page)]
        self.taken: list[Block] = []

    def take(self, page: str, part: str) -> Block:
        """Return the one block of a page that holds this text."""
        [found] = [block for block in self.all if block.page == page and part in block.code]
        self.taken.append(found)
        return found


async def execute(block: Block, names: dict[str, Any]) -> None:
    """Execute Python as it stands there, with `await` outside of any function, as in `python -m asyncio`."""
    code = compile(block.code, f"{block.page}:{block.line}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = eval(code, names)
    if inspect.isawaitable(running):
        await running


class Terminal:
    """Where a reader types: a folder with the parts of the repository that examples name, beside a running `up`.

    `.venv` leads to the environment of the tests. The `up` of the tests has free ports, so that others may run on this
    machine; the one address with a default port in it is replaced here, and nothing else of what the examples say.
    """

    def __init__(self, up: Up) -> None:
        self.up = up
        self._numbers = count(1)
        for name, target in {".venv": Path(sys.prefix), "examples": ROOT / "examples"}.items():
            if not (up.folder / name).exists():
                (up.folder / name).symlink_to(target)

    def begin(self, code: str, **placeholders: str) -> Process:
        """Start what is typed; `CLIENT="…"` says what stands for a placeholder."""
        for name, value in placeholders.items():
            code = re.sub(rf"\b{name}\b", value, code)
        code = code.replace(DEFAULT_API_URL, self.up.run_file["apiUrl"])
        process = Process("sh", self.up.folder / f"terminal-{next(self._numbers)}", self.up.environment)
        process.command = ["sh", "-euc", f"cd {shlex.quote(str(self.up.folder))}\n{code}"]
        return process.launch()

    def begin_one(self, command: str, **placeholders: str) -> Process:
        """Start a single command, which gets the signals that are sent to the process."""
        return self.begin(f"exec {command}", **placeholders)

    async def run(self, code: str, **placeholders: str) -> str:
        """Type, wait for the end, and return what was printed; nothing may go wrong."""
        process = self.begin(code, **placeholders)
        try:
            assert await process.ended() == 0, process.log
        finally:
            process.end()
        return process.out
