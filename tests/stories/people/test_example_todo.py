"""The to-do example as its README tells it: the page in a real browser, the agent as a process of its own."""

import asyncio
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import httpx
import nats
import pytest
import pytest_asyncio
from playwright.async_api import Page, Route, WebSocketRoute, expect
from support.nats.nats_server import NatsServer, free_port
from support.paths import ROOT
from support.processes.bridge import Bridge, running_bridge
from support.processes.browser import open_page
from support.processes.child import Process
from support.settings import SECRET, agent_token, app_token
from support.wait import subscribed, until

from agentbridge.deployment.data_folder import RunFile, hold, published

EXAMPLE = ROOT / "examples" / "todo"
RECONNECT_MS = 20_000
ORIGINS = "http://127.0.0.1:*"
RED = "rgb(179, 38, 30)"  # --bad, where the browser prefers light colours
DRIVEN = ["Buy oat milk", "Call grandma", "Water the plants"]

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


class Stage(NamedTuple):
    """A running bridge, and where the page is served beside it."""

    bridge: Bridge
    url: str


class Example(NamedTuple):
    """The page, connected."""

    bridge: Bridge
    page: Page

    async def client_id(self) -> str:
        return await ready(self.page)

    async def ask(self, question: str) -> httpx.Response:
        return await self.bridge.call(await self.client_id(), "askPerson", {"question": question})


def script(name: str, folder: Path, *arguments: str) -> Process:
    process = Process(name, folder, {"AGENTBRIDGE_DATA_DIR": str(folder)}, *arguments)
    process.command = [sys.executable, str(EXAMPLE / f"{name}.py"), *arguments]
    return process.launch()


@contextlib.asynccontextmanager
async def served(folder: Path, *arguments: str) -> AsyncIterator[str]:
    """Serve the page, and give its address; it must have nothing to complain about."""
    serve = script("serve", folder, "--port", "0", *arguments)
    try:
        found = await until(lambda: re.search(r"http://\S+", serve.out))
        yield str(found and found[0])
        assert serve.log == ""
    finally:
        serve.end()


async def run_agent(folder: Path, *arguments: str) -> str:
    agent = script("agent", folder, *arguments)
    try:
        assert await agent.ended() == 0, agent.log
    finally:
        agent.end()
    return agent.out


async def ready(page: Page) -> str:
    """Wait until the page is connected, and return its id."""
    await expect(page.locator("#phase")).to_have_text("Connected", timeout=RECONNECT_MS)
    return await page.locator("#client-id").inner_text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """The page, served beside a bridge that all tests share; its gateway can be restarted on the same port."""
    folder, nats_server = tmp_path_factory.mktemp("stage"), NatsServer(tmp_path_factory.mktemp("nats"))
    await nats_server.start()
    port = free_port()
    try:
        async with running_bridge(
            folder / "bridge", nats_server.url, gateway_port=port, allowed_origins=ORIGINS
        ) as bridge:
            run_file = RunFile(
                pid=os.getpid(),
                api_url=bridge.agent_apis[0].url,
                gateway_url=bridge.gateway_url,
                nats_url=nats_server.url,
                jwt_secret=SECRET,
            )
            with hold(folder), published(folder, run_file):
                async with served(folder) as url:
                    yield Stage(bridge, url)
    finally:
        nats_server.kill()


@pytest_asyncio.fixture(loop_scope="module")
async def example(stage: Stage) -> AsyncIterator[Example]:
    """The page in a browser of its own, the only client that is connected to the bridge."""
    async with open_page(stage.url) as page:
        await stage.bridge.only(await ready(page))
        yield Example(stage.bridge, page)


async def test_three_commands_of_the_readme_are_all_it_takes(tmp_path: Path) -> None:
    ports = {"AGENTBRIDGE_API_PORT": "0", "AGENTBRIDGE_GATEWAY_PORT": "0", "AGENTBRIDGE_DATA_DIR": str(tmp_path)}
    up = Process("agentbridge", tmp_path / "up", ports, "up").launch()
    try:
        await until((tmp_path / "run.json").exists, 30)
        async with served(tmp_path) as url, open_page(url) as page:
            client_id = await ready(page)
            said = await run_agent(tmp_path, "--via", "http")
            await expect(page.locator("#todos .title")).to_have_text(DRIVEN)
            await expect(page.locator("#todos input:checked + .title")).to_have_text(["Buy oat milk"])
            await expect(page.locator("#driver")).to_have_text("todo-agent")
            assert client_id in said
            assert "[x] Buy oat milk" in said

            said = await run_agent(tmp_path, "--via", "nats")
            await expect(page.locator("#todos .title")).to_have_text(DRIVEN * 2)
            assert "todo.completed: Buy oat milk (by todo-agent)" in said
            assert "todo.added: Water the plants (by todo-agent)" in said
        assert await up.terminate() == 0
    finally:
        up.end()


async def test_what_a_person_does_an_agent_sees(example: Example) -> None:
    page, client_id = example.page, await example.client_id()
    for title in ("Buy eggs", "Sweep the yard", "Sleep"):
        await page.get_by_label("What needs doing?").fill(title)
        await page.get_by_role("button", name="Add").click()
    await page.get_by_label("Buy eggs", exact=True).check()
    await page.get_by_label("Remove Sleep").click()
    await page.get_by_label("Sweep the yard", exact=True).check()
    await page.get_by_label("Buy eggs", exact=True).uncheck()
    await page.get_by_role("button", name="Clear completed").click()

    answer = await example.bridge.call(client_id, "listTodos")

    assert answer.json()["result"] == [{"id": "1", "title": "Buy eggs", "done": False, "by": "person"}]
    await expect(page.locator("#count")).to_have_text("1 of 1 to do")


async def test_list_and_client_outlive_a_reload(example: Example) -> None:
    before = await example.client_id()
    await example.bridge.call(before, "addTodo", {"title": "Buy eggs"})

    await example.page.reload()

    after = await ready(example.page)
    assert after == before
    await expect(example.page.locator("#todos .title")).to_have_text(["Buy eggs"])
    await example.bridge.only(after)


async def test_two_tabs_are_two_clients_of_one_list(example: Example) -> None:
    first = await example.client_id()
    tab = await example.page.context.new_page()
    await tab.goto(example.page.url)
    second = await ready(tab)
    assert second != first
    await example.bridge.only(first, second)
    await example.bridge.call(first, "addTodo", {"title": "Buy eggs"})
    await expect(tab.locator("#todos .title")).to_have_text(["Buy eggs"])
    done = await example.bridge.call(second, "completeTodo", {"id": "1"})
    assert done.json()["result"]["done"] is True
    await expect(example.page.get_by_label("Buy eggs", exact=True)).to_be_checked()


async def test_agent_passes_over_a_page_that_was_closed(stage: Stage, example: Example) -> None:
    client_id = await example.client_id()
    tab = await example.page.context.new_page()
    await tab.goto(stage.url)
    closed = await ready(tab)
    await stage.bridge.only(client_id, closed)
    await tab.close()
    await stage.bridge.only(client_id)
    assert closed in await stage.bridge.capabilities()  # it may come back
    for route in ("http", "nats"):
        assert client_id in await run_agent(stage.bridge.folder.parent, "--via", route)


async def test_event_of_the_page_is_seen_on_nats(example: Example) -> None:
    client_id = await example.client_id()
    async with await nats.connect(example.bridge.nats_url) as client:
        events = await client.subscribe("agentbridge.default.event.>")
        await subscribed(client)
        await example.page.get_by_label("What needs doing?").fill("Buy eggs")
        await example.page.get_by_label("What needs doing?").press("Enter")
        seen = await events.next_msg(timeout=5)

    assert seen.subject == f"agentbridge.default.event.{client_id}.todo%2Eadded"
    event = json.loads(seen.data)
    assert event["event"] == "todo.added"
    assert (event["user"], event["app"], event["source"]) == ("ann", "todo", "todos")
    assert event["data"] == {"id": "1", "title": "Buy eggs", "done": False, "by": "person"}


async def test_error_of_the_page_reaches_the_agent_in_its_own_words(example: Example) -> None:
    answer = await example.bridge.call(await example.client_id(), "completeTodo", {"id": "99"})

    assert answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR
    assert answer.json()["message"] == 'there is no to-do "99"; list them to see the ids'
    assert answer.json()["details"] == {"code": "no_such_todo"}
    await expect(example.page.locator("#commands .status")).to_have_text(["failed"])
    await expect(example.page.locator("#commands .message")).to_have_css("color", RED)


async def test_person_answers_what_an_agent_asks_or_waves_it_away(example: Example) -> None:
    dialog = example.page.get_by_role("dialog")
    async with asyncio.TaskGroup() as tasks:
        answered = tasks.create_task(example.ask("Is it raining?"))
        await expect(dialog).to_contain_text("agent-1 asks: Is it raining?")
        await expect(example.page.locator("#commands .message")).to_have_text(["the person is being asked"])
        await expect(example.page.locator("#commands .message")).not_to_have_css("color", RED)
        await dialog.get_by_role("button", name="Yes").click()
    async with asyncio.TaskGroup() as tasks:
        dismissed = tasks.create_task(example.ask("Is it snowing?"))
        await expect(dialog).to_contain_text("agent-1 asks: Is it snowing?")
        await example.page.keyboard.press("Escape")

    await expect(example.page.locator("#commands .message")).to_have_text(["", ""])
    assert answered.result().json()["result"] == {"answer": "yes"}
    assert dismissed.result().json()["result"] == {"answer": "dismissed"}


async def test_question_goes_away_with_the_agent_that_asked_it(example: Example) -> None:
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(example.ask("Is it raining?"))
        await expect(example.page.get_by_role("dialog")).to_be_visible()
        asking.cancel()

    await expect(example.page.get_by_role("dialog")).to_be_hidden()
    await expect(example.page.locator("#commands .status")).to_have_text(["cancelled"])


async def test_person_stops_an_agent_that_works_and_allows_it_again_after_a_reload(example: Example) -> None:
    page, client_id = example.page, await example.client_id()
    await example.bridge.call(client_id, "listTodos")
    await expect(page.locator("#agents .working")).to_have_text(["Agent agent-1 is working"])
    await page.locator("#agents").get_by_role("button", name="Stop").click()
    await expect(page.locator("#agents .working")).to_have_text(["Agent agent-1 is stopped"])
    refused = await example.bridge.call(client_id, "listTodos")
    assert (refused.json()["code"], refused.json()["details"]["by"]) == ("permission_denied", "user")

    await page.reload()
    await ready(page)
    await expect(page.locator("#agents .working")).to_have_text(["Agent agent-1 is stopped"])
    await page.locator("#agents").get_by_role("button", name="Allow").click()
    await expect(page.locator("#agents .working")).to_have_count(0)
    await until(lambda: is_served(example, client_id))


async def is_served(example: Example, client_id: str) -> bool:
    return (await example.bridge.call(client_id, "listTodos")).status_code == httpx.codes.OK


async def test_page_comes_back_after_a_restart_of_the_gateway_with_what_it_had_to_tell(example: Example) -> None:
    page, gateway = example.page, example.bridge.gateways[0]
    async with await nats.connect(example.bridge.nats_url) as client:
        events = await client.subscribe("agentbridge.default.event.>")
        await subscribed(client)
        assert await gateway.terminate() == 0
        await expect(page.locator("#phase")).not_to_have_text("Connected")
        await page.get_by_label("What needs doing?").fill("Written offline")
        await page.get_by_role("button", name="Add").click()
        await gateway.start()
        after = await ready(page)
        seen = json.loads((await events.next_msg(timeout=5)).data)

    assert (seen["clientId"], seen["data"]["title"]) == (after, "Written offline")
    await example.bridge.only(after)
    assert (await example.bridge.call(after, "listTodos")).json()["result"][0]["title"] == "Written offline"


async def test_page_that_is_refused_says_why(tmp_path: Path, stage: Stage) -> None:
    arguments = ("--gateway", stage.bridge.gateway_url, "--token", agent_token())
    async with served(tmp_path, *arguments) as url, open_page(url) as page:
        await expect(page.locator("#reason")).to_have_text("an application needs a token with the role app")
        await expect(page.get_by_role("button", name="Connect now")).to_be_visible()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("nonsense", "the token does not verify"),
        (app_token(ttl_seconds=-1), "the token has expired; get a fresh one"),
        (None, "authentication required"),
    ],
)
async def test_page_whose_server_gives_bad_tokens_asks_again_at_once_and_then_after_pauses(
    stage: Stage, bad: str | None, reason: str
) -> None:
    given: list[str | None] = []
    tokens = [bad, bad, bad, app_token("ann")]

    async def give(route: Route) -> None:
        given.append(tokens[len(given)])
        await route.fulfill(json={"token": given[-1]})

    async def refused(times: int) -> None:
        await expect(page.locator("#reason")).to_have_text(reason)
        await expect(page.locator("#phase")).to_have_text("Reconnecting…")
        assert len(given) == times

    async with open_page(f"{stage.url}style.css") as page:
        await page.route("**/token.json", give)
        await page.clock.install()
        await page.clock.pause_at(time.time() + 60)
        await page.goto(stage.url)
        await page.clock.run_for(1)  # the library begins when the page's scripts have run
        await refused(1)
        await page.clock.run_for(0)
        await until(lambda: len(given) == 2)
        for times, half_ms in ((2, 500), (3, 1000)):
            await refused(times)
            await page.clock.run_for(half_ms - 1)
            assert len(given) == times, "half of a pause is certain, the other half random"
            await page.clock.run_for(half_ms + 1)
            await until(lambda: len(given) > times)  # noqa: B023  awaited here
        await ready(page)


async def test_token_is_given_to_the_page_alone(stage: Stage) -> None:
    async with httpx.AsyncClient(base_url=stage.url, trust_env=False) as client:
        session = await client.get("/token.json")
        rebound = await client.get("/token.json", headers={"Host": "evil.example"})
        files = [await client.get(path) for path in ("/", "/app.js", "/panel.js")]

    token = session.json()["token"]
    assert session.headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in session.headers
    assert rebound.status_code == httpx.codes.FORBIDDEN
    assert not any(token in text for text in (rebound.text, *(file.text for file in files)))


async def test_agent_says_in_a_sentence_what_is_missing(tmp_path: Path) -> None:
    for name in ("agent", "serve"):
        process = script(name, tmp_path)
        assert await process.ended() == 1
        assert process.log.startswith(f"{name}: no bridge runs here: start `agentbridge up`")
        assert len(process.log.splitlines()) == 1


OFFERING = """
(tools) => {
  const {connect} = window.agentbridge
  window.other = connect({
    url: document.querySelector('script[data-app]').src.replace('agentbridge.js', ''),
    tokenUrl: 'token.json', app: 'other',
  })
  for (const tool of tools) window.other.registerTool({description: 'x', execute: () => 'done', ...tool})
}
"""
STATE = "() => window.other.state"


async def test_page_whose_list_holds_an_odd_capability_offers_the_others(example: Example) -> None:
    page, said = example.page, list[str]()
    page.on("console", lambda message: said.append(message.text))
    await page.evaluate(OFFERING, [{"name": "wipe", "permission": ["admin"]}, {"name": "good"}])
    state = await until(lambda: offered(page, "ready"), 10)
    answer = await example.bridge.call(state["clientId"], "good")
    assert answer.json()["result"] == "done"
    assert any("left out wipe" in each for each in said)
    await page.evaluate("() => window.other.close()")


async def test_page_whose_list_comes_too_early_sends_it_again(example: Example) -> None:
    page, sent = example.page, list[str]()
    early = {"type": "error", "code": "rate_limited", "message": "…", "id": "registration-1"}

    def between(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()

        def pass_on(message: str | bytes) -> None:
            sent.append(str(message))
            if len(sent) == 1:
                socket.send(json.dumps({**early, "details": {"retryAfterMs": 50}}))
            else:
                server.send(message)

        socket.on_message(pass_on)

    await page.route_web_socket("**", between)
    await page.evaluate(OFFERING, [{"name": "late"}])
    await until(lambda: offered(page, "ready"), 10)
    first, second = (json.loads(each) for each in sent[:2])
    assert first | {"id": ""} == second | {"id": ""}
    await page.evaluate("() => window.other.close()")


async def offered(page: Page, phase: str) -> dict[str, str]:
    """Return the state of the other client once it is in this phase, or has stopped, which nothing follows."""
    state: dict[str, str] = await page.evaluate(STATE)
    assert state["phase"] != "stopped", state
    return state if state["phase"] == phase else {}
