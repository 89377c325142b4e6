"""The to-do list as a React application, and as a page that knows WebMCP only: one command each, in a real browser."""

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Page, expect
from support.nats.nats_server import NatsServer
from support.paths import ROOT
from support.processes.bridge import Bridge, running_bridge
from support.processes.browser import open_browser, open_page
from support.processes.child import Process
from support.processes.javascript import needs_node
from support.settings import SECRET
from support.wait import until

from agentbridge.deployment.data_folder import RunFile, hold, published

BUILD_SECONDS = 120
pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bridge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bridge]:
    nats_server, folder = NatsServer(tmp_path_factory.mktemp("nats")), tmp_path_factory.mktemp("bridge")
    await nats_server.start()
    try:
        async with running_bridge(folder, nats_server.url, allowed_origins="http://127.0.0.1:*") as running:
            run_file = RunFile(
                pid=os.getpid(),
                api_url=running.agent_apis[0].url,
                gateway_url=running.gateway_url,
                nats_url=nats_server.url,
                jwt_secret=SECRET,
            )
            with hold(folder), published(folder, run_file):
                yield running
    finally:
        nats_server.kill()


@contextlib.asynccontextmanager
async def served(bridge: Bridge, page: str) -> AsyncIterator[str]:
    """Serve a page by the example's own command, and give its address."""
    arguments = [str(ROOT / "examples/todo/serve.py"), "--port", "0", "--page", page]
    environment = {"AGENTBRIDGE_DATA_DIR": str(bridge.folder), "PATH": os.environ["PATH"]}  # noqa: TID251  npm is there
    serve = Process("serve", bridge.folder / f"serve-{page}", environment)
    serve.command = [sys.executable, *arguments]
    serve.launch()
    try:
        found = await until(lambda: re.search(r"http://\S+", serve.out), BUILD_SECONDS)
        yield str(found and found[0])
        assert serve.log == ""
    finally:
        serve.end()


async def client_of(bridge: Bridge, *names: str) -> str:
    """Wait until a connected client offers just these, and return its id."""

    async def offering() -> str:
        connected, found = await bridge.connected(), await bridge.capabilities()
        listed = {client: {each.get("name") or each["id"] for each in offers} for client, offers in found.items()}
        return next((client for client in connected & listed.keys() if listed[client] == set(names)), "")

    return await until(offering, 15)


@needs_node
async def test_react_application_offers_what_is_mounted(bridge: Bridge) -> None:
    async with served(bridge, "react") as url, open_page(url) as page:
        client = await client_of(bridge, "addTodo", "listTodos", "clearCompleted", "draft")
        for title in ("Buy milk", "Call grandma"):
            assert (await bridge.call(client, "addTodo", {"title": title})).json()["result"]["title"] == title
        await expect(page.locator("#todos .title")).to_have_text(["Buy milk", "Call grandma"])
        listed = (await bridge.call(client, "listTodos")).json()["result"]
        assert [each["title"] for each in listed] == ["Buy milk", "Call grandma"]
        await expect(page.locator("#agents .working")).to_have_text(["Agent agent-1 is working"])
        await page.locator("#agents").get_by_role("button", name="Stop").click()
        await expect(page.locator("#agents .working")).to_have_text(["Agent agent-1 is stopped"])
        assert (await bridge.call(client, "listTodos")).json()["details"]["by"] == "user"
        await page.locator("#agents").get_by_role("button", name="Allow").click()
        await until(lambda: is_served(bridge, client), 10)
        await page.evaluate("agentbridge.stop()")
        await expect(page.locator("#agents [data-stopped]")).to_contain_text("Each agent is stopped")
        await page.locator("#agents").get_by_role("button", name="Allow").click()
        await until(lambda: is_served(bridge, client), 10)

        await bridge.call(client, "draft", {"text": "Sleep"}, action="setText")
        await expect(page.get_by_label("What needs doing?")).to_have_value("Sleep")
        await until(lambda: drafts(bridge, client, "Sleep"), 10)
        await until(lambda: describes(bridge, client, "List the 2 to-dos, oldest first."), 10)


async def is_served(bridge: Bridge, client: str) -> bool:
    return (await bridge.call(client, "listTodos")).status_code == httpx.codes.OK


async def drafts(bridge: Bridge, client: str, text: str) -> bool:
    [draft] = [each for each in (await bridge.capabilities())[client] if "id" in each]
    return bool(draft["properties"] == {"text": text})


async def describes(bridge: Bridge, client: str, text: str) -> bool:
    offers = (await bridge.capabilities())[client]
    return any(each.get("description") == text for each in offers)


@needs_node
async def test_question_of_the_react_application_is_the_library_s(bridge: Bridge) -> None:
    async with served(bridge, "react") as url, open_page(url) as page, asyncio.TaskGroup() as tasks:
        client = await client_of(bridge, "addTodo", "listTodos", "clearCompleted", "draft")
        asked = tasks.create_task(bridge.call(client, "clearCompleted"))
        await page.get_by_role("dialog").get_by_role("button", name="Allow").click()
        assert (await asked).json()["result"] == []


@pytest.mark.parametrize("flags", [[], ["--enable-features=WebMCP"]], ids=["absent", "present"])
async def test_page_that_knows_only_webmcp_works_with_agents(bridge: Bridge, flags: list[str]) -> None:
    async with served(bridge, "webmcp") as url, open_browser(*flags) as context:
        page: Page = await context.new_page()
        await page.goto(url)
        client = await client_of(bridge, "addTodo", "listTodos")
        added = await bridge.call(client, "addTodo", {"title": "Buy milk"})
        assert added.json()["result"]["title"] == "Buy milk"
        await expect(page.locator("#todos .title")).to_have_text(["Buy milk"])


async def test_pages_hold_no_second_copy_of_the_library() -> None:
    sources = [path for folder in ("todo", "todo-react", "todo-webmcp") for path in scripts(ROOT / "examples" / folder)]
    assert not [path for path in sources if "new WebSocket" in path.read_text()]
    assert len(sources) >= 5


def scripts(folder: Path) -> list[Path]:
    return [*folder.glob("*.js"), *folder.glob("*.jsx")]
