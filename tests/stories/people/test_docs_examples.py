"""Every example of the documentation is executed, and does what the text around it says."""

import ast
import asyncio
import contextlib
import hashlib
import json
import random
import re
import signal
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import nats
import pytest
from playwright.async_api import Page, expect
from support.examples import Block, Examples, Terminal, execute
from support.paths import ROOT
from support.played.app import Handler, application
from support.processes import node, npm
from support.processes.browser import open_page
from support.processes.child import Process
from support.processes.javascript import ACTIONCABLE_MODULE, needs_node, node_module, run_in_page
from support.processes.up import Up
from support.wait import until

from protocol.runtime.nats import agent_login

EXAMPLES = Examples()
README, TODO = "README.md", "examples/todo/README.md"
DEVELOPMENT, DEPLOYMENT, OPERATIONS = "docs/development.md", "docs/deployment.md", "docs/operations.md"
APPLICATIONS = "docs/applications.md"
HTTP, NATS, EVENTS = "docs/http.md", "docs/nats.md", "docs/events.md"

SERVE_PAGE = EXAMPLES.take(README, "examples/todo/serve.py\n")
CALL_OVER_HTTP = EXAMPLES.take(README, "curl")
CALL_BY_COMMAND_LINE = EXAMPLES.take(README, "agentbridge call --user")
CALL_IN_PYTHON = EXAMPLES.take(README, "nc.request")
APPLICATION_IN_JAVASCRIPT = EXAMPLES.take(README, "new WebSocket")
APPLICATION_IN_PYTHON = EXAMPLES.take("docs/websocket.md", "connect(gateway_url")
APPLICATION_THAT_RESUMES = EXAMPLES.take("docs/resume.md", "?resume=")
APPLICATION_BY_SOCKETIO = EXAMPLES.take("docs/socketio.md", "socket.io-client")
APPLICATION_BY_ACTIONCABLE = EXAMPLES.take("docs/actioncable.md", "createConsumer")
APPLICATION_OF_THE_ORIGINAL_SDK = EXAMPLES.take("docs/original-sdk.md", "register_capabilities")
AGENT_OF_THE_ORIGINAL_SDK = EXAMPLES.take("docs/original-sdk.md", "capabilities_updated")
APPLICATION_OF_THE_DOCUMENT = EXAMPLES.take("docs/websocket.md", 'from "ws"')
THREE_COMMANDS = EXAMPLES.take(TODO, "examples/todo/agent.py")
ASK_PERSON = EXAMPLES.take(TODO, "askPerson")
TEST_COMMANDS = [EXAMPLES.take(README, "/pytest"), EXAMPLES.take(DEVELOPMENT, "/pytest")]
FOLDERS = EXAMPLES.take(DEVELOPMENT, "what crosses NATS")
ONE_OVER_HTTP = EXAMPLES.take(HTTP, '"title": "Buy milk"')
SEVERAL_OVER_HTTP = EXAMPLES.take(HTTP, '"gather": "all"')
PROGRESS_OVER_HTTP = EXAMPLES.take(HTTP, "curl -sN")
STREAM_OVER_HTTP = EXAMPLES.take(HTTP, "event: progress")
READ_EVENTS = EXAMPLES.take(EVENTS, "curl -sN")
EVENTS_READ = EXAMPLES.take(EVENTS, "event: client")
EVENTS_IN_JAVASCRIPT = EXAMPLES.take(EVENTS, "async function readEvents")
COMMANDS_ON_A_WEBSOCKET = EXAMPLES.take("docs/agent-websocket.md", "/api/ws")
READ_AUDIT = EXAMPLES.take("docs/audit.md", "/api/audit")
COMMAND_LINE = EXAMPLES.take("docs/command-line.md", "agentbridge capabilities CLIENT")
FIND_AND_CALL_OVER_NATS = EXAMPLES.take(NATS, "hashlib")
FIND_AND_CALL_IN_NODE = EXAMPLES.take(NATS, "@nats-io/transport-node")
SEVERAL_OVER_NATS = EXAMPLES.take(NATS, "async def ask_all")

COVERED_ELSEWHERE = {
    EXAMPLES.take(
        DEPLOYMENT, "docker compose up --build"
    ): "it needs Docker: tests/deploy/test_compose.py executes it there",
    EXAMPLES.take(DEPLOYMENT, "--scale gateway=4"): "it needs Docker: tests/deploy/test_compose.py executes it there",
    EXAMPLES.take(OPERATIONS, "--no-recreate"): "it needs Docker: tests/deploy/test_compose.py executes it there",
    EXAMPLES.take(OPERATIONS, "-cf -"): "it needs Docker: tests/deploy/test_compose.py executes it there",
    EXAMPLES.take(OPERATIONS, "-xf -"): "it needs Docker: tests/deploy/test_compose.py executes it there",
    EXAMPLES.take(DEPLOYMENT, "console health"): "it needs Docker: tests/deploy/test_compose.py executes it there",
    EXAMPLES.take(
        DEPLOYMENT, "kubectl apply"
    ): "it needs a cluster: tests/deploy/test_kubernetes.py validates what it applies",
    EXAMPLES.take(
        DEPLOYMENT, "kubectl run"
    ): "it needs a cluster: tests/deploy/test_kubernetes.py looks at the pod and its settings",
    **{
        EXAMPLES.take("docs/tools.md", f"def ask_{provider}"): "tests/stories/tools/test_docs_loops.py runs it"
        for provider in ("openai", "anthropic", "gemini")
    },
    EXAMPLES.take("docs/mcp.md", "--print-config claude"): "tests/stories/tools/test_mcp_stdio.py runs each of them",
    EXAMPLES.take("docs/mcp.md", "claude mcp add"): "it needs the host: it names a URL and a header",
    EXAMPLES.take("docs/mcp.md", '"mcpServers"'): "it needs the host: test_docs_loops.py reads it",
    EXAMPLES.take("docs/mcp.md", "bearer_token_env_var"): "it needs the host: test_docs_loops.py reads it",
    **{
        EXAMPLES.take(APPLICATIONS, part): "tests/stories/applications/test_documentation.py executes it"
        for part in ("<script", "Depends", "requireLogin", "agentbridge call", 'from "ws"')
    },
    EXAMPLES.take(APPLICATIONS, "useTool"): "tests/stories/people/test_example_pages.py runs an application of such",
    EXAMPLES.take(NATS, "allowed_origins"): "tests/nats/deployment/test_websocket.py starts a server with it",
    EXAMPLES.take(README, "[embedded,mcp]"): "it needs the network: `.ci/run` installs, and test_up.py starts `up`",
    EXAMPLES.take(README, "JetStream KV, streams"): "a picture: test_architecture.py checks the arrows",
}


GRACE_SECONDS = 1  # so that the page of one test is gone when the next one finds clients


class OpenPage(NamedTuple):
    """The to-do page in a browser, connected."""

    page: Page
    client_id: str


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A place to type in, beside an `up` that all tests here share."""
    up = Up(tmp_path_factory.mktemp("reader"), resume_grace_seconds=GRACE_SECONDS)
    try:
        up.start_blocking()
        yield Terminal(up)
    finally:
        up.end()


@pytest.fixture
async def todo(terminal: Terminal) -> AsyncIterator[OpenPage]:
    """The page that the README has people open, the only one there is."""
    serve = terminal.begin_one(SERVE_PAGE.code)
    try:
        async with open_page(await address_of(serve)) as page:
            await expect(page.locator("#phase")).to_have_text("Connected")
            client_id = await page.locator("#client-id").inner_text()
            await until(lambda: listed(terminal, client_id))
            yield OpenPage(page, client_id)
    finally:
        serve.end()


async def address_of(serve: Process) -> str:
    found = await until(lambda: re.search(r"http://\S+", serve.out))
    return str(found and found[0])


async def listed(terminal: Terminal, client_id: str) -> bool:
    """Tell whether this client is the only one."""
    return list(await ask(terminal, "GET", "/api/capabilities")) == [client_id]


async def ask(terminal: Terminal, method: str, path: str, **options: Any) -> Any:
    """Send the agent API a request, and return the body of a good answer."""
    headers = {"Authorization": f"Bearer {terminal.up.token('agent')}"}
    async with httpx.AsyncClient(base_url=terminal.up.run_file["apiUrl"], headers=headers, trust_env=False) as client:
        answer = await client.request(method, path, **options)
    return answer.raise_for_status().json()


def titles(todo: OpenPage) -> Any:
    return expect(todo.page.locator("#todos .title"))


def json_values(text: str) -> Iterator[Any]:
    """Yield JSON values that stand one behind the other."""
    while text := text.strip():
        value, end = json.JSONDecoder().raw_decode(text)
        yield value
        text = text[end:]


def test_every_example_is_executed_or_covered_elsewhere_for_a_reason() -> None:
    """A block that is missing here is new: write a test that executes it, or say above what covers it."""
    assert sorted(EXAMPLES.taken) == sorted(EXAMPLES.all)


async def test_snippet_of_the_audit_page_shows_who_called_what(terminal: Terminal) -> None:
    up = terminal.up
    async with application(up.run_file["gatewayUrl"], {"add": lambda _: "done"}, token=up.token("app", "ann")) as app:
        await ask(terminal, "POST", "/api/command", json={"clientId": app.client_id, "command": {"target": "add"}})
    shown = await until(lambda: shown_of(terminal, app.client_id), 20)

    [record, *_], end = json.JSONDecoder().raw_decode(shown)
    assert (record["clientId"], record["user"], record["target"]) == (app.client_id, "ann", "add")
    assert f"-> {app.client_id} ann  add  success" in shown[end:]


async def shown_of(terminal: Terminal, client_id: str) -> str:
    """Return what the snippet prints once it has the record of this client."""
    shown = await terminal.run(READ_AUDIT.code)
    return shown if shown.count(client_id) >= 2 else ""


@pytest.mark.browser
async def test_commands_of_the_readme_find_the_page_and_put_something_on_its_list(
    terminal: Terminal, todo: OpenPage
) -> None:
    found, answer = json_values(await terminal.run(CALL_OVER_HTTP.code))

    assert "addTodo" in [capability.get("name") for capability in found[todo.client_id]]
    assert (answer["success"], answer["clientId"], answer["result"]["title"]) == (True, todo.client_id, "Buy milk")
    assert answer.keys() >= {"requestId"}
    await titles(todo).to_have_text(["Buy milk"])


@pytest.mark.browser
async def test_command_line_of_the_readme_lists_calls_and_hears_of_it(terminal: Terminal, todo: OpenPage) -> None:
    list_clients, call, hear_events = CALL_BY_COMMAND_LINE.lines  # the last runs until Ctrl-C, so it comes first here
    events = terminal.begin_one(hear_events)
    try:
        await until(lambda: "listening" in events.log)
        clients = await terminal.run(list_clients)
        called = await terminal.run(call)
        await until(lambda: "Buy bread" in events.out)
        events.signal(signal.SIGINT)
        await events.ended()
    finally:
        events.end()

    assert todo.client_id in clients
    assert "Buy bread" in called
    assert "todo.added" in events.out
    await titles(todo).to_have_text(["Buy bread"])


@pytest.mark.browser
async def test_page_about_the_command_line_finds_out_and_calls(terminal: Terminal, todo: OpenPage) -> None:
    list_clients, list_capabilities, add, list_todos = COMMAND_LINE.lines
    assert todo.client_id in await terminal.run(list_clients)
    assert "askPerson" in await terminal.run(list_capabilities, CLIENT=todo.client_id)
    assert "Buy bread" in await terminal.run(add, CLIENT=todo.client_id)
    answer = json.loads(await terminal.run(list_todos, CLIENT=todo.client_id))
    assert (answer["status"], answer["result"][0]["title"]) == ("success", "Buy bread")


@pytest.mark.browser
async def test_page_about_http_streams_what_it_shows(terminal: Terminal, todo: OpenPage) -> None:
    async with asyncio.TaskGroup() as tasks:
        streamed = tasks.create_task(terminal.run(PROGRESS_OVER_HTTP.code))
        await expect(todo.page.get_by_role("dialog")).to_contain_text("Milk?")
        await todo.page.get_by_role("button", name="Yes").click()
    names = r'^event: .*|"\w+":'
    assert re.findall(names, streamed.result(), re.MULTILINE) == re.findall(names, STREAM_OVER_HTTP.code, re.MULTILINE)
    assert '"answer":"yes"' in streamed.result()


@pytest.mark.browser
async def test_python_of_the_readme_reaches_the_page_over_nats(
    terminal: Terminal, todo: OpenPage, capsys: pytest.CaptureFixture[str]
) -> None:
    names = python_names(terminal) | {"client_id": todo.client_id}
    try:
        await execute(CALL_IN_PYTHON, names)
    finally:
        await names["nc"].close()

    assert "Buy eggs" in capsys.readouterr().out
    await titles(todo).to_have_text(["Buy eggs"])


def python_names(terminal: Terminal) -> dict[str, Any]:
    """Return what examples in Python take for granted."""
    run_file = terminal.up.run_file
    names = {"nats_url": run_file["natsUrl"], "api_url": run_file["apiUrl"], "gateway_url": run_file["gatewayUrl"]}
    names |= {"token": terminal.up.token("agent"), "app_token": terminal.up.token("app"), "sub": "somebody"}
    names |= {"inbox_prefix": agent_login.inbox_prefix("default", "somebody")}
    return {"asyncio": asyncio, "hashlib": hashlib, "json": json, "nats": nats, "random": random} | names


@contextlib.asynccontextmanager
async def todo_lists(terminal: Terminal, count: int) -> AsyncIterator[dict[str, list[str]]]:
    """Connect applications with a to-do list each, and give their lists by client id."""
    lists: dict[str, list[str]] = {}
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            todos: list[str] = []
            handlers: dict[str, Handler] = {
                "addTodo": partial(added, todos),
                "countTodos": partial(counted, todos),
            }
            url, token = terminal.up.run_file["gatewayUrl"], terminal.up.token("app", "ann")
            app = await stack.enter_async_context(application(url, handlers, token=token, app={"name": "todo"}))
            lists[app.client_id] = todos
        await until(partial(all_offer, terminal, set(lists)))
        yield lists


def added(todos: list[str], parameters: dict[str, Any]) -> str:
    todos.append(parameters["title"])
    return todos[-1]


def counted(todos: list[str], parameters: dict[str, Any]) -> int:
    return len(todos)


async def all_offer(terminal: Terminal, client_ids: set[str]) -> bool:
    """Tell whether the agent API and the registry know just these clients with a list."""
    over_nats = json.loads(await terminal.run(".venv/bin/agentbridge clients --name addTodo --json"))
    over_http = await ask(terminal, "GET", "/api/clients", params={"name": "addTodo"})
    return all({client["clientId"] for client in listed} == client_ids for listed in (over_nats, over_http))


async def test_page_about_http_reaches_one_of_several_and_all(terminal: Terminal) -> None:
    async with todo_lists(terminal, 3) as lists:
        one = json.loads(await terminal.run(ONE_OVER_HTTP.code))
        several = json.loads(await terminal.run(SEVERAL_OVER_HTTP.code))

    assert (one["success"], one["result"], lists[one["clientId"]]) == (True, "Buy milk", ["Buy milk"])
    counts = {client_id: response["result"] for client_id, response in several["results"].items()}
    assert (counts, several["complete"]) == ({each: int(each == one["clientId"]) for each in lists}, True)


async def test_page_about_events_shows_what_happens(terminal: Terminal) -> None:
    curl = terminal.begin(READ_EVENTS.code.replace("curl", "exec curl"))  # so that it is curl that ends
    names = r'^event: .*|"\w+":'
    expected = re.findall(names, EVENTS_READ.code, re.MULTILINE)
    try:
        await until(lambda: "retry:" in curl.out)
        url, token = terminal.up.run_file["gatewayUrl"], terminal.up.token("app")
        async with application(url, {}, token=token, app={"name": "todo"}) as app:
            await until(lambda: "connected" in curl.out)
            await app.send({"type": "event", "event": "other", "data": 1})
            await app.send({"type": "event", "event": "todo.added", "data": {"title": "Buy milk"}})
            await until(lambda: "Buy milk" in curl.out)
    finally:
        curl.end()

    assert re.findall(names, curl.out, re.MULTILINE)[: len(expected)] == expected
    assert '"other"' not in curl.out


@pytest.mark.browser
async def test_javascript_of_the_page_about_events_reads_them_and_comes_back(terminal: Terminal) -> None:
    url, run = "/api/events?event=todo.*", terminal.up.run_file
    surroundings = """([url, token, lastId]) => { %s
        window.taken = [];
        readEvents(url, token, (name, data, id) => window.taken.push([name, data.data, id]), lastId);
    }"""
    large = "event: other\n\ndata: \r\n" + "\u20ac" * 90_000

    async def taken(page: Page, number: int) -> list[Any]:
        found: list[Any] = await page.evaluate("window.taken")
        return found if len(found) >= number else []

    async with open_page(f"{run['apiUrl']}/healthz") as page:
        arguments = [url, terminal.up.token("agent"), ""]
        async with page.expect_response("**/api/events*"):
            await page.evaluate(surroundings % EVENTS_IN_JAVASCRIPT.code, arguments)
        async with application(run["gatewayUrl"], {}, token=terminal.up.token("app"), app={"name": "todo"}) as app:
            for data in (1, large, 2):
                await app.send({"type": "event", "event": "todo.added", "data": data})
            first = await until(lambda: taken(page, 3))
            await page.evaluate(surroundings % EVENTS_IN_JAVASCRIPT.code, [*arguments[:2], first[0][2]])
            again = await until(lambda: taken(page, 2))
    assert [(name, data) for name, data, _ in first] == [("event", 1), ("event", large), ("event", 2)]
    assert again == first[1:]


async def test_page_about_nats_finds_calls_and_asks_several(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    names = python_names(terminal)
    async with todo_lists(terminal, 3) as lists:
        try:
            await execute(FIND_AND_CALL_OVER_NATS, names)
            await execute(SEVERAL_OVER_NATS, names)
        finally:
            await names["nc"].close()
    one, any_, several = (ast.literal_eval(line) for line in capsys.readouterr().out.splitlines())

    assert (one["status"], one["result"], lists[one["clientId"]]) == ("success", "Buy eggs", ["Buy eggs"])
    counts = {client_id: int(client_id == one["clientId"]) for client_id in lists}
    assert any_["result"] == counts[any_["clientId"]]
    assert {client_id: response["result"] for client_id, response in several.items()} == counts


@pytest.mark.skipif(npm.MISSING, reason="node and npm are not here")
async def test_page_about_nats_finds_and_calls_in_javascript(terminal: Terminal, tmp_path: Path) -> None:
    names = python_names(terminal)
    told = {"natsUrl": names["nats_url"], "token": names["token"], "sub": names["sub"]}
    async with todo_lists(terminal, 1) as lists:
        said = await node.run(FIND_AND_CALL_IN_NODE.code, told, tmp_path)
    reply = json.loads(said)
    assert (reply["status"], reply["result"], lists[reply["clientId"]]) == ("success", "Buy tea", ["Buy tea"])


async def test_page_about_the_agents_websocket_sends_three_commands_at_once(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    async with todo_lists(terminal, 1) as lists:
        await execute(COMMANDS_ON_A_WEBSOCKET, python_names(terminal))
    titles = ["Buy milk", "Buy eggs", "Buy tea"]
    told = capsys.readouterr().out.splitlines()
    assert told == [f"todo-{number} success {title} None" for number, title in enumerate(titles)]
    assert sorted(*lists.values()) == sorted(titles)


async def test_page_about_frames_begins_with_a_whole_application(terminal: Terminal) -> None:
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(execute(APPLICATION_IN_PYTHON, python_names(terminal)))
        found = await until(partial(offer_of_one, terminal, "Add an item to the list"))
        [client_id] = found
        command = {"clientId": client_id, "command": {"target": "addTodo", "parameters": {"title": "Buy tea"}}}
        answers = [await ask(terminal, "POST", "/api/command", json=command) for _ in range(2)]
        running.cancel()

    assert [answer["result"] for answer in answers] == [1, 2]


async def test_page_about_resuming_begins_with_an_application_that_does(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    await execute(APPLICATION_THAT_RESUMES, python_names(terminal))
    assert capsys.readouterr().out == "resumed\n"


@needs_node
async def test_page_about_socketio_begins_with_a_whole_application(terminal: Terminal) -> None:
    url = terminal.up.run_file["gatewayUrl"].replace("ws", "http", 1).removesuffix("/ws")
    names = {"gatewayUrl": url, "token": terminal.up.token("app")}
    async with node_module(APPLICATION_BY_SOCKETIO.code, names) as program:
        assert await adding_todos(terminal, "Add an item by Socket.IO") == [1, 2]
        assert program.told == ["true success"]


@pytest.mark.browser
@needs_node
async def test_page_about_actioncable_begins_with_a_whole_application(terminal: Terminal) -> None:
    """In a page, because the library watches whether its page is visible."""
    names = {"gatewayUrl": terminal.up.run_file["gatewayUrl"].removesuffix("/ws"), "token": terminal.up.token("app")}
    async with open_page(f"{terminal.up.run_file['apiUrl']}/healthz") as page:
        await run_in_page(page, APPLICATION_BY_ACTIONCABLE.code, names, ACTIONCABLE_MODULE)
        assert await adding_todos(terminal, "Add an item by ActionCable") == [1, 2]


@needs_node
async def test_page_about_the_original_sdk_begins_with_a_whole_application(terminal: Terminal) -> None:
    names = {"gatewayUrl": terminal.up.run_file["gatewayUrl"].removesuffix("/ws"), "token": terminal.up.token("app")}
    agents = {"apiUrl": terminal.up.run_file["apiUrl"].replace("http", "ws", 1), "token": terminal.up.token("agent")}
    async with (
        node_module(APPLICATION_OF_THE_ORIGINAL_SDK.code, names),
        node_module(AGENT_OF_THE_ORIGINAL_SDK.code, agents) as agent,
    ):
        assert await until(lambda: agent.told) == ["true 1"]
        assert await adding_todos(terminal, "Add an item by the SDK") == [2, 3]


@needs_node
async def test_page_about_frames_has_an_application_of_the_protocol_document(terminal: Terminal) -> None:
    names = {"gatewayUrl": terminal.up.run_file["gatewayUrl"].removesuffix("/ws"), "token": terminal.up.token("app")}
    async with node_module(APPLICATION_OF_THE_DOCUMENT.code, names):
        assert await adding_todos(terminal, "Add an item by the document") == [1, 2]


async def adding_todos(terminal: Terminal, description: str) -> list[Any]:
    """Add two items at the one application with this description; return the answers."""
    [client_id] = await until(partial(offer_of_one, terminal, description))
    command = {"clientId": client_id, "command": {"target": "addTodo", "parameters": {"title": "Buy tea"}}}
    return [(await ask(terminal, "POST", "/api/command", json=command))["result"] for _ in range(2)]


async def offer_of_one(terminal: Terminal, description: str) -> dict[str, Any]:
    """Return who offers this, once there is such a one."""
    found = await ask(terminal, "GET", "/api/capabilities", params={"name": "addTodo"})
    return {client_id: offers for client_id, offers in found.items() if offers[0].get("description") == description}


@pytest.mark.browser
async def test_javascript_of_the_readme_makes_a_page_an_application(terminal: Terminal) -> None:
    url, token = terminal.up.run_file["gatewayUrl"], terminal.up.token("app")
    surroundings = "([url, token]) => { const addTodo = async ({ title }) => ({ added: title });\n%s\n}"
    async with open_page(f"{terminal.up.run_file['apiUrl']}/healthz") as page:
        await page.evaluate(surroundings % APPLICATION_IN_JAVASCRIPT.code, [url, token])
        found = await until(partial(offer_of_one, terminal, "Add an item to the list"))
        [client_id] = found
        command = {"clientId": client_id, "command": {"target": "addTodo", "parameters": {"title": "Buy tea"}}}
        answer = await ask(terminal, "POST", "/api/command", json=command)

    assert found[client_id][0]["description"] == "Add an item to the list"
    assert answer["result"] == {"added": "Buy tea"}


@pytest.mark.browser
async def test_three_commands_of_the_example_drive_its_page(terminal: Terminal) -> None:
    start_bridge, start_page, drive = THREE_COMMANDS.lines
    assert start_bridge == ".venv/bin/agentbridge up"  # which runs here already, on free ports
    serve = terminal.begin_one(start_page)
    try:
        async with open_page(await address_of(serve)) as page:
            await expect(page.locator("#phase")).to_have_text("Connected")
            client_id = await page.locator("#client-id").inner_text()
            await until(lambda: listed(terminal, client_id))
            over_http = await terminal.run(drive)
            over_nats = await terminal.run(f"{drive} --via nats")
    finally:
        serve.end()

    assert "[x] Buy oat milk" in over_http
    assert "todo.completed: Buy oat milk" in over_nats


@pytest.mark.browser
async def test_person_at_the_page_is_asked_until_ctrl_c(terminal: Terminal, todo: OpenPage) -> None:
    dialog = todo.page.get_by_role("dialog")
    asking = terminal.begin_one(ASK_PERSON.code, CLIENT=todo.client_id)
    try:
        await expect(dialog).to_contain_text("Shall I order the milk?")
        asking.signal(signal.SIGINT)
        await expect(dialog).to_be_hidden()
        assert await asking.ended() != 0
    finally:
        asking.end()

    async with asyncio.TaskGroup() as tasks:
        answered = tasks.create_task(terminal.run(ASK_PERSON.code, CLIENT=todo.client_id))
        await expect(dialog).to_contain_text("Shall I order the milk?")
        await todo.page.get_by_role("button", name="Yes").click()
    assert "yes" in answered.result()


@pytest.mark.parametrize("block", TEST_COMMANDS, ids=lambda block: block.page)
def test_commands_that_run_all_tests_are_those_of_continuous_integration(block: Block) -> None:
    """Executing them would run this test again; `.ci/run` does, on a fresh machine."""
    assert block.code.strip() in (ROOT / ".ci/run").read_text()


def test_folders_of_the_picture_are_there() -> None:
    parents: list[str] = []
    named = set[str]()
    for line in FOLDERS.code.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = [word for word in line.split() if word.endswith("/")]
        if not names:  # what is said of a folder goes on
            continue
        parents[depth:] = [names[0]]
        named |= {"".join([*parents[:depth], name]).rstrip("/") for name in names}
    assert [name for name in named if not (ROOT / name).is_dir()] == []
    packages = [path.parent for path in ROOT.glob("*/**/__init__.py") if ".venv" not in path.parts]
    folders = {str(path.relative_to(ROOT)) for path in packages}
    assert {name for name in folders - named if not name.startswith(("tests/", "bench"))} == set()
