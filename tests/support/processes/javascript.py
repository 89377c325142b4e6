"""Applications in JavaScript, in Node or in a page, by the libraries that such applications really use."""

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.async_api import Page

from support.paths import ROOT
from support.processes import npm
from support.wait import until

FOLDER = ROOT / "tests/support/javascript"
ACTIONCABLE_MODULE = FOLDER / "node_modules/@rails/actioncable/app/assets/javascripts/actioncable.esm.js"
needs_node = pytest.mark.skipif(npm.MISSING, reason="node and npm are not here")

Words = list[Any]


class ScriptedApp:
    """An application in JavaScript. `told` is all that it has told, each a list of words."""

    def __init__(self) -> None:
        self.told: list[Words] = []

    def all_heard(self, *words: Any) -> list[Words]:
        """Return all that began with these words."""
        return [told for told in self.told if told[: len(words)] == list(words)]

    async def heard(self, *words: Any, count: int = 1, seconds: float = 15) -> Words:
        """Wait until it has told something that begins with these words, so many times; return the last."""
        return (await until(lambda: self.all_heard(*words)[count - 1 :], seconds))[0]

    @property
    def client_id(self) -> str:
        """The id of its last session."""
        return str(self.all_heard("connection")[-1][1])


class NodeApp(ScriptedApp):
    """An application in a process of Node."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__()
        self.process = process

    async def read(self) -> None:
        """Read what it tells until it ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.told.append(json.loads(line))

    async def call(self, method: str, *arguments: Any) -> None:
        """Call a method of the library's own object, and wait for it."""
        assert self.process.stdin is not None
        count = len(self.all_heard("returned")) + 1
        self.process.stdin.write(json.dumps([method, *arguments]).encode() + b"\n")
        await self.heard("returned", count=count)


@contextlib.asynccontextmanager
async def node_app(dialect: str, url: str, token: str, **options: Any) -> AsyncIterator[NodeApp]:
    """Run an application in Node, and end it."""
    npm.install(FOLDER)
    command = ["node", str(FOLDER / "run.js"), dialect, url, token, json.dumps(options)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    app = NodeApp(process)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(app.read())
        try:
            yield app
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class Program(NamedTuple):
    """A program in Node: the lines that it has printed."""

    told: list[str]


@contextlib.asynccontextmanager
async def node_module(code: str, names: Mapping[str, object]) -> AsyncIterator[Program]:
    """Run an ES module that finds these names and the installed libraries, and end it."""
    npm.install(FOLDER)
    process = await asyncio.create_subprocess_exec(
        "node", "--input-type=module", "--eval", _constants(names) + code, cwd=FOLDER, stdout=asyncio.subprocess.PIPE
    )
    program = Program([])

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            program.told.append(line.decode().rstrip())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        try:
            yield program
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def run_in_page(page: Page, code: str, names: dict[str, str], library: Path) -> None:
    """Run an ES module in a page; what it imports is `library`, whatever its name."""
    npm.install(FOLDER)
    await page.add_script_tag(content=_constants(names) + _importing(library, code), type="module")


async def page_app(page: Page, run: Callable[[], str], scripts: Sequence[str]) -> ScriptedApp:
    """Run an application in a page: its scripts, then the JavaScript that `run` returns, which may `tell(…)`."""
    npm.install(FOLDER)
    app = ScriptedApp()
    await page.expose_function("tellTest", lambda text: app.told.append(json.loads(text)))
    await page.evaluate("window.tell = (...words) => window.tellTest(JSON.stringify(words))")
    for script in ("application.js", *scripts):
        await page.add_script_tag(path=FOLDER / script)
    await page.evaluate(run())
    return app


def _constants(names: Mapping[str, object]) -> str:
    return "".join(f"const {name} = {json.dumps(value)};\n" for name, value in names.items())


def _importing(library: Path, code: str) -> str:
    """Return a module that imports a library from its text instead of by its name."""
    data_url = f"data:text/javascript;base64,{base64.b64encode(library.read_bytes()).decode()}"
    return re.sub(r'from "[^"]+"', f'from "{data_url}"', code)
