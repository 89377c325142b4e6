"""`agentbridge mcp`: the official client starts it, as a desktop host does, in both eras."""

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from support.mcp_client import text_of
from support.played.app import App, never
from support.processes.bridge import Bridge
from support.settings import SECRET, agent_token
from support.wait import until

from agent_api.mcp.server import INSTRUCTIONS

AGENTBRIDGE = str(shutil.which("agentbridge", path=str(sys.prefix) + "/bin"))
MODES = ("auto", "legacy")


@pytest.fixture
async def app(bridge: Bridge) -> AsyncIterator[App]:
    handlers = {"add": lambda parameters: {"added": parameters["title"]}, "never": never, "list": lambda _: [1, 2]}
    async with bridge.app(handlers) as connected:
        await bridge.listed(connected.client_id)
        yield connected


@contextlib.asynccontextmanager
async def host(bridge: Bridge, mode: str, **options: Any) -> AsyncIterator[Client]:
    """Run the command as a host does, and speak with it."""
    program = StdioServerParameters(
        command=AGENTBRIDGE,
        args=["mcp", "--url", bridge.agent_apis[0].url],
        env={"AGENTBRIDGE_TOKEN": agent_token()},
    )
    async with Client(program, mode=mode, **options) as client:
        yield client


@pytest.mark.parametrize("mode", MODES)
async def test_host_lists_and_calls(bridge: Bridge, app: App, mode: str) -> None:
    async with host(bridge, mode) as client:
        assert sorted(tool.name for tool in (await client.list_tools()).tools) == ["add", "list", "never"]
        result = await client.call_tool("add", {"title": "Milk"})
        assert result.structured_content == {"added": "Milk"}
        assert text_of(await client.call_tool("list")) == "[1, 2]"
        with pytest.raises(Exception, match="there is no tool 'nothing'"):
            await client.call_tool("nothing")


@pytest.mark.parametrize("mode", MODES)
async def test_host_is_told_what_the_server_says_of_itself(bridge: Bridge, app: App, mode: str) -> None:
    async with host(bridge, mode) as client:
        assert client.instructions == INSTRUCTIONS


@pytest.mark.parametrize("mode", MODES)
async def test_progress_comes_in_order(bridge: Bridge, app: App, mode: str) -> None:
    heard: list[float] = []

    async def take(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async with host(bridge, mode) as client, asyncio.TaskGroup() as tasks:
        calling = tasks.create_task(client.call_tool("never", progress_callback=take))
        command = await app.received(type="command", target="never", seconds=20)
        for value in (1, 2, 3):
            await app.send({"type": "progress", "requestId": command["requestId"], "progress": value})
            await until(partial(heard.count, value), 10)
        await app.send({"type": "response", "requestId": command["requestId"], "status": "success", "result": "done"})
        assert text_of(await calling) == "done"
    assert heard == [1, 2, 3]


@pytest.mark.parametrize("mode", MODES)
async def test_cancel_reaches_the_application(bridge: Bridge, app: App, mode: str) -> None:
    async with host(bridge, mode) as client:
        await client.list_tools()
        async with anyio.create_task_group() as calling:
            calling.start_soon(client.call_tool, "never")
            await app.received(type="command", target="never", seconds=20)
            calling.cancel_scope.cancel()
        await app.received(type="cancel", seconds=10)


@pytest.mark.parametrize("mode", MODES)
async def test_host_hears_of_changes(bridge: Bridge, app: App, mode: str) -> None:
    heard = asyncio.Event()

    async def take(message: Any) -> None:
        if getattr(message, "method", "") == "notifications/tools/list_changed":
            heard.set()

    async with host(bridge, mode, message_handler=take) as client:
        await client.list_tools()
        async with contextlib.AsyncExitStack() as apps:
            if mode == "auto":
                await apps.enter_async_context(client.listen(tools_list_changed=True))
            for number in range(10):
                await apps.enter_async_context(bridge.app(capabilities=[f"new{number}"]))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(heard.wait(), 3)
                    break
            assert heard.is_set()


async def test_token_that_is_refused_is_told_in_a_sentence(bridge: Bridge) -> None:
    command = [AGENTBRIDGE, "mcp", "--url", bridge.agent_apis[0].url]
    ended = await asyncio.to_thread(
        subprocess.run, command, input="", capture_output=True, text=True, env={"AGENTBRIDGE_TOKEN": "none"}, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "cannot be used" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", ["claude", "cursor", "vscode", "codex"])
def test_configuration_of_a_host_starts_this_command(name: str) -> None:
    command = [AGENTBRIDGE, "mcp", "--print-config", name, "--url", "http://127.0.0.1:9", "--name", "ann"]
    environment = {"AGENTBRIDGE_JWT_SECRET": SECRET}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60).stdout
    whole = tomllib.loads(printed) if name == "codex" else json.loads(printed)
    (servers,) = whole.values()
    entry = servers["ann"]
    assert [entry["command"], *entry["args"]] == [AGENTBRIDGE, "mcp", "--url", "http://127.0.0.1:9"]
    assert SECRET not in printed
