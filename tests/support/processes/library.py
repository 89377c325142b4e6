"""A program in Node that uses the library."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from support.paths import ROOT
from support.processes.javascript import Program, node_module
from support.wait import until

MODULE = (ROOT / "gateway/static/agentbridge.mjs").as_uri()
PROGRAM = ROOT / "tests/support/javascript/library.mjs"


class LibraryProgram:
    """What the program has told, each a list of words."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def told(self, *words: Any) -> list[list[Any]]:
        """Return all that begins with these words."""
        said = [json.loads(line) for line in self._program.told]
        return [each for each in said if each[: len(words)] == list(words)]

    async def heard(self, *words: Any, seconds: float = 15) -> list[Any]:
        """Wait for something that begins with these words; return the last."""
        return (await until(lambda: self.told(*words), seconds))[-1]

    async def client_id(self) -> str:
        """Wait until it is ready, and return its id."""
        return str((await self.heard("state", "ready"))[2])


@contextlib.asynccontextmanager
async def library_program(url: str, token: str, **options: Any) -> AsyncIterator[LibraryProgram]:
    """Run the program with these options of `connect`, and end it."""
    names = {"library": MODULE, "url": url, "token": token, "options": options}
    async with node_module(PROGRAM.read_text(), names) as program:
        yield LibraryProgram(program)
