"""*Put it into your application*, as its readers do it: the page, both backends, the first command, a logout."""

import contextlib
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, Page
from support.examples import Examples, Terminal
from support.nats.nats_server import free_port
from support.processes import node, npm
from support.processes.browser import open_browser
from support.processes.child import Process
from support.processes.javascript import needs_node, node_module
from support.processes.library import MODULE
from support.processes.up import PATH, Up
from support.wait import until

EXAMPLES = Examples()
DOCS = "docs/applications.md"
PAGE, FIRST_COMMAND = EXAMPLES.take(DOCS, "<script"), EXAMPLES.take(DOCS, "agentbridge call")
FASTAPI, EXPRESS = EXAMPLES.take(DOCS, "Depends"), EXAMPLES.take(DOCS, "requireLogin")
IN_NODE = EXAMPLES.take(DOCS, 'from "ws"')

AROUND_FASTAPI = """
from types import SimpleNamespace
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse

app = FastAPI()


def logged_in_user(request: Request):
    if "user" not in request.cookies:
        raise HTTPException(401)
    return SimpleNamespace(id=request.cookies["user"])


@app.get("/", response_class=HTMLResponse)
def page():
    return PAGE

"""
AROUND_EXPRESS = """
import express from "express";

const app = express();
const requireLogin = (request, response, next) => {
  const [, id] = /user=(\\w+)/.exec(request.headers.cookie ?? "") ?? [];
  if (!id) return response.sendStatus(401);
  request.user = { id };
  next();
};
app.get("/", (request, response) => response.send(PAGE));
app.listen(Number(process.env.PORT), "127.0.0.1");
"""
CART = "<link rel='icon' href='data:,'><script>window.cart = {add: (product, count) => ({product, count})}</script>"
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    up = Up(tmp_path_factory.mktemp("reader"))
    try:
        up.start_blocking()
        yield Terminal(up)
    finally:
        up.end()


def page_for(terminal: Terminal) -> str:
    """Return the page of the documentation, with the running gateway in it."""
    gateway = terminal.up.run_file["gatewayUrl"].replace("ws", "http", 1).removesuffix("/ws")
    assert PAGE.code.count("https://gateway.example.com") == 1
    return CART + PAGE.code.replace("https://gateway.example.com", gateway)


def fastapi_command(terminal: Terminal, folder: Path, port: int) -> list[str]:
    (folder / "shop.py").write_text(f"PAGE = {page_for(terminal)!r}\n{AROUND_FASTAPI}{FASTAPI.code}")
    return [sys.executable, "-m", "uvicorn", "--app-dir", str(folder), "--port", str(port), "shop:app"]


def express_command(terminal: Terminal, folder: Path, port: int) -> list[str]:
    npm.install(node.PACKAGES)
    (folder / "node_modules").symlink_to(node.PACKAGES / "node_modules")
    (folder / "shop.mjs").write_text(f"const PAGE = {json.dumps(page_for(terminal))};\n{AROUND_EXPRESS}{EXPRESS.code}")
    return ["node", str(folder / "shop.mjs")]


@contextlib.asynccontextmanager
async def backend(terminal: Terminal, folder: Path, name: str) -> AsyncIterator[str]:
    """Run a backend with the secret of the gateways, and give its address."""
    port = free_port()
    secret = {"AGENTBRIDGE_JWT_SECRET": terminal.up.run_file["jwtSecret"], "PORT": str(port), "PATH": PATH}
    process = Process(name, folder, secret)
    process.command = {"fastapi": fastapi_command, "express": express_command}[name](terminal, folder, port)
    process.launch()
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.end()


async def opened(context: BrowserContext, url: str) -> Page:
    """Open the page as Ann, as soon as its server answers."""
    await context.add_cookies([{"name": "user", "value": "ann", "url": url}])
    page = await context.new_page()
    await until(lambda: answers(page, url), 30)
    await until(lambda: page.evaluate("agentbridge.state.phase === 'ready'"), 15)
    return page


async def answers(page: Page, url: str) -> bool:
    with contextlib.suppress(Exception):
        await page.goto(url)
        return True
    return False


@needs_node
@pytest.mark.parametrize("name", ["fastapi", "express"])
async def test_script_tag_and_ten_lines_of_backend_are_all_it_takes(
    terminal: Terminal, tmp_path: Path, name: str
) -> None:
    async with backend(terminal, tmp_path, name) as url, open_browser() as context:
        page = await opened(context, url)
        said = await terminal.run(FIRST_COMMAND.code)
        assert json.loads(said) == {"product": "milk", "count": 2}
        await context.clear_cookies()
        await page.evaluate("agentbridge.close(); agentbridge.reconnect()")
        await until(lambda: page.evaluate("agentbridge.state.reason === 'nobody is logged in'"), 10)
        await context.add_cookies([{"name": "user", "value": "bob", "url": url}])
        await page.evaluate("agentbridge.reconnect()")
        await until(lambda: page.evaluate("agentbridge.state.phase === 'ready'"), 10)
        records = (await terminal.up.command("clients")).out
        assert "bob" in records
        assert "ann" not in records


@needs_node
async def test_program_in_node_is_found_and_called(terminal: Terminal) -> None:
    names = {"gatewayUrl": terminal.up.run_file["gatewayUrl"], "token": terminal.up.token("app", "store")}
    code = IN_NODE.code.replace("./agentbridge.mjs", MODULE)
    async with node_module(code, names):
        await until(lambda: counted(terminal), 15)


async def counted(terminal: Terminal) -> bool:
    called = await terminal.up.command("call", "--user", "store", "stock", "product=milk")
    return called.code == 0 and json.loads(called.out) == {"product": "milk", "count": 7}
