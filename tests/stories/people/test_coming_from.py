"""Whoever has an application or an agent of the guide's servers changes what the pages say, and it runs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from support.examples import COMING_FROM_PAGES, Examples, execute
from support.processes.browser import open_page
from support.processes.javascript import ACTIONCABLE_MODULE, needs_node, node_module, run_in_page
from support.processes.up import Up
from support.wait import until

EXAMPLES = Examples(COMING_FROM_PAGES)
FOLDER = "docs/coming-from"
APPLICATION_OF_EXPRESS = EXAMPLES.take(f"{FOLDER}/express.md", "new WebSocket")
AGENT_OF_EXPRESS = EXAMPLES.take(f"{FOLDER}/express.md", "fetch(")
APPLICATION_OF_NESTJS = EXAMPLES.take(f"{FOLDER}/nestjs.md", "socket.io-client")
APPLICATION_OF_RAILS = EXAMPLES.take(f"{FOLDER}/rails.md", "createConsumer")
APPLICATION_OF_FASTAPI = EXAMPLES.take(f"{FOLDER}/fastapi.md", "connect(")
APPLICATION_OF_THE_ORIGINAL = EXAMPLES.take(f"{FOLDER}/original-sdk.md", "register_capabilities")
AGENT_OF_THE_ORIGINAL = EXAMPLES.take(f"{FOLDER}/original-sdk.md", "capabilities_updated")


def test_every_example_is_executed() -> None:
    assert sorted(EXAMPLES.taken) == sorted(EXAMPLES.all)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("newcomer"), resume_grace_seconds=1)  # so that who has left is soon gone
    try:
        running.start_blocking()
        yield running
    finally:
        running.end()


@pytest.fixture
async def http(up: Up) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {up.token('agent')}"}
    async with httpx.AsyncClient(base_url=up.run_file["apiUrl"], headers=headers, trust_env=False) as client:
        await until(lambda: _nobody_is_left(client))
        yield client


async def _nobody_is_left(http: httpx.AsyncClient) -> bool:
    return not (await http.get("/api/capabilities")).json()


def names_of(up: Up, *, of_http: bool = False) -> dict[str, str]:
    """Return what stands in the pages for the gateway's address and an application's token."""
    url = str(up.run_file["gatewayUrl"]).removesuffix("/ws")
    return {"gatewayUrl": url.replace("ws", "http", 1) if of_http else url, "token": up.token("app")}


async def listed(http: httpx.AsyncClient, name: str) -> bool:
    return len((await http.get("/api/clients", params={"name": name})).json()) == 1


async def adds_todos(http: httpx.AsyncClient) -> bool:
    """Tell whether the application that there is adds two items to its list."""
    await until(lambda: listed(http, "addTodo"))
    command: dict[str, Any] = {"target": "addTodo", "parameters": {"title": "Buy tea"}}
    answers = [(await http.post("/api/command", json={"command": command})).json() for _ in range(2)]
    return [answer["result"] for answer in answers] == [1, 2]


@needs_node
async def test_application_and_agent_of_express(up: Up, http: httpx.AsyncClient) -> None:
    agent = {"apiUrl": up.run_file["apiUrl"], "token": up.token("agent")}
    async with node_module(APPLICATION_OF_EXPRESS.code, names_of(up)):
        await until(lambda: listed(http, "addTodo"))
        async with node_module(AGENT_OF_EXPRESS.code, agent) as program:
            assert await until(lambda: program.told if len(program.told) == 2 else []) == [
                "true 1",
                "Client not found",
            ]


@needs_node
async def test_application_of_nestjs(up: Up, http: httpx.AsyncClient) -> None:
    async with node_module(APPLICATION_OF_NESTJS.code, names_of(up, of_http=True)):
        assert await adds_todos(http)


@pytest.mark.browser
@needs_node
async def test_application_of_rails(up: Up, http: httpx.AsyncClient) -> None:
    async with open_page(f"{up.run_file['apiUrl']}/healthz") as page:
        await run_in_page(page, APPLICATION_OF_RAILS.code, names_of(up), ACTIONCABLE_MODULE)
        assert await adds_todos(http)


async def test_application_of_fastapi(up: Up, http: httpx.AsyncClient) -> None:
    names = {"gateway_url": up.run_file["gatewayUrl"], "token": up.token("app")}
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(execute(APPLICATION_OF_FASTAPI, names))
        with contextlib.ExitStack() as ended:
            ended.callback(running.cancel)
            assert await adds_todos(http)


@needs_node
async def test_application_and_agent_of_the_original_project(up: Up, http: httpx.AsyncClient) -> None:
    agent = {"apiUrl": str(up.run_file["apiUrl"]).replace("http", "ws", 1), "token": up.token("agent")}
    async with (
        node_module(APPLICATION_OF_THE_ORIGINAL.code, names_of(up)),
        node_module(AGENT_OF_THE_ORIGINAL.code, agent) as program,
    ):
        assert await until(lambda: program.told) == ["42"]
