"""The official clients of the Model Context Protocol, in every era, against two agent APIs without stickiness."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.client.subscriptions import ToolsListChanged
from support.mcp_client import MODES, mcp_client, text_of
from support.nats.nats_server import NatsServer
from support.played.app import App, AppFault, Handler, never
from support.processes.bridge import Bridge, running_bridge
from support.processes.round_robin import RoundRobin, round_robin
from support.settings import agent_token, app_token
from support.wait import until

ADD = {
    "type": "function",
    "name": "add",
    "description": "Add an item",
    "parameters": {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
}
HANDLERS: dict[str, Handler] = {"add": lambda parameters: {"added": parameters["title"]}, "never": never, "slow": never}


@pytest.fixture
async def two_apis(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Bridge]:
    async with running_bridge(tmp_path, private_nats.url, agent_apis=2) as bridge:
        yield bridge


@pytest.fixture
async def proxy(two_apis: Bridge) -> AsyncIterator[RoundRobin]:
    async with round_robin([process.url for process in two_apis.agent_apis]) as running:
        yield running


@pytest.fixture
async def app(two_apis: Bridge) -> AsyncIterator[App]:
    async with two_apis.app(HANDLERS, capabilities=[ADD, "never", "slow"]) as connected:
        await two_apis.listed(connected.client_id)
        yield connected


@pytest.fixture
def url(proxy: RoundRobin) -> str:
    return f"{proxy.url}/mcp"


async def names(client: Any) -> list[str]:
    listed = await client.list_tools(cache_mode="bypass")
    return sorted(tool.name for tool in listed.tools)


async def lists(client: Any, *expected: str) -> None:
    async def as_expected() -> bool:
        return await names(client) == sorted(expected)

    await until(as_expected, 10)


def received(app: App, kind: str, count: int) -> bool:
    return len(app.all_received(type=kind)) >= count


async def progress_of(app: App, *values: float) -> None:
    """Tell how far the command `slow` has come, then answer it."""
    command = await app.received(type="command", target="slow")
    for value in values:
        await app.send({"type": "progress", "requestId": command["requestId"], "progress": value, "total": 3})
        await asyncio.sleep(0.1)  # gateways pass on 20 a second at most
    await app.send({"type": "response", "requestId": command["requestId"], "status": "success", "result": "done"})


@pytest.mark.parametrize("mode", MODES)
async def test_list_and_call(app: App, url: str, proxy: RoundRobin, mode: str) -> None:
    async with mcp_client(url, mode) as client:
        await lists(client, "add", "never", "slow")
        for number in range(4):
            result = await client.call_tool("add", {"title": f"Milk {number}"})
            assert not result.is_error
            assert result.structured_content == {"added": f"Milk {number}"}
    assert min(proxy.requests) >= 2


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_call_under_a_key_is_executed_once(app: App, url: str, mode: str) -> None:
    async with mcp_client(url, mode) as client:
        await lists(client, "add", "never", "slow")
        meta: Any = {"agentbridge/idempotencyKey": "key-1"}
        for _ in range(3):
            result = await client.call_tool("add", {"title": "Milk"}, meta=meta)
            assert result.structured_content == {"added": "Milk"}
    assert len(app.all_received(type="command")) == 1


@pytest.mark.parametrize("mode", MODES)
async def test_progress_comes_in_order(app: App, url: str, mode: str) -> None:
    heard: list[tuple[float, float | None]] = []

    async def take(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total))

    async with mcp_client(url, mode) as client, asyncio.TaskGroup() as tasks:
        await lists(client, "add", "never", "slow")
        tasks.create_task(progress_of(app, 1, 2, 2, 1, 3))
        result = await client.call_tool("slow", progress_callback=take)
    assert text_of(result) == "done"
    assert heard == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("mode", MODES)
async def test_application_sees_that_a_call_is_cancelled(app: App, url: str, mode: str) -> None:
    async with mcp_client(url, mode) as client:
        await lists(client, "add", "never", "slow")
        for number in range(1, 4):  # an odd number: in the older era each begins at another replica than its cancel
            async with anyio.create_task_group() as calling:
                calling.start_soon(client.call_tool, "never")
                await until(partial(received, app, "command", number), 10)
                calling.cancel_scope.cancel()
            await until(partial(received, app, "cancel", number), 5)
        assert (await client.call_tool("add", {"title": "after"})).structured_content == {"added": "after"}


@pytest.mark.parametrize("mode", MODES)
async def test_change_of_the_list_is_told(two_apis: Bridge, app: App, url: str, mode: str) -> None:
    heard = asyncio.Event()

    async def take(message: Any) -> None:
        if getattr(message, "method", "") == "notifications/tools/list_changed":
            heard.set()

    async with mcp_client(url, mode, message_handler=take) as client:
        await lists(client, "add", "never", "slow")
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(_listen(client, heard)) if mode != "legacy" else None
            for number in range(10):  # nothing tells when the stream is open, so the list changes again and again
                async with two_apis.app(capabilities=[f"new{number}"]):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(heard.wait(), 3)
                    await lists(client, "add", "never", f"new{number}", "slow")
                if heard.is_set():
                    break
            assert heard.is_set()
            if listening is not None:
                listening.cancel()


async def _listen(client: Any, heard: asyncio.Event) -> None:
    async with client.listen(tools_list_changed=True) as changes:
        async for change in changes:
            assert isinstance(change, ToolsListChanged)
            heard.set()


@pytest.mark.parametrize("mode", MODES)
async def test_neither_of_two_principals_sees_the_others_tools(two_apis: Bridge, url: str, mode: str) -> None:
    tokens = {user: agent_token(f"agent-of-{user}", limits={"users": [user]}) for user in ("ann", "bob")}
    async with (
        two_apis.app({"hers": lambda _: "ann"}, token=app_token("ann")),
        two_apis.app({"his": lambda _: "bob"}, token=app_token("bob")),
        mcp_client(url, mode, tokens["ann"]) as ann,
        mcp_client(url, mode, tokens["bob"]) as bob,
    ):
        await lists(ann, "hers")
        await lists(bob, "his")
        assert text_of(await ann.call_tool("hers")) == "ann"
        with pytest.raises(Exception, match="there is no tool 'his'"):
            await ann.call_tool("his")


@pytest.mark.parametrize("mode", MODES)
async def test_replica_that_dies_ends_its_calls_at_once_and_the_application_hears_of_it(
    two_apis: Bridge, app: App, mode: str
) -> None:
    async def call() -> None:
        async with mcp_client(f"{two_apis.agent_apis[1].url}/mcp", mode) as client:
            await lists(client, "add", "never", "slow")
            await client.call_tool("never")

    calling = asyncio.ensure_future(call())  # noqa: TID251  awaited below
    await app.received(type="command", target="never", seconds=30)
    killed = time.monotonic()
    await two_apis.agent_apis[1].kill()
    with pytest.raises(ExceptionGroup):  # the client's transport breaks as a whole
        await asyncio.wait_for(calling, 2)
    await app.received(type="cancel", seconds=15)
    assert time.monotonic() - killed < 10


# --- failures ---


async def sold_out(parameters: dict[str, Any]) -> None:
    raise AppFault("it is sold out", "SOLD_OUT")


@pytest.mark.parametrize("mode", MODES)
async def test_failure_is_a_result_with_its_code(two_apis: Bridge, url: str, mode: str) -> None:
    handlers: dict[str, Handler] = {"add": lambda _: None, "fail": sold_out, "never": never}
    async with (
        two_apis.app(handlers, capabilities=[ADD, "fail", "never"]) as app,
        mcp_client(url, mode) as client,
        asyncio.TaskGroup() as tasks,
    ):
        await lists(client, "add", "fail", "never")
        wrong = error_of(await client.call_tool("add", {"title": 7}))
        assert (wrong["code"], wrong["details"]) == ("invalid_parameters", {"path": "/title"})
        assert wrong["message"].startswith("`parameters/title`: ")
        failed = error_of(await client.call_tool("fail"))
        assert (failed["code"], failed["message"]) == ("command_failed", "it is sold out")
        assert failed["details"] == {"code": "SOLD_OUT"}
        soon: Any = {"agentbridge/timeoutMs": 300}
        assert error_of(await client.call_tool("never", meta=soon))["code"] == "timeout"
        calling = tasks.create_task(client.call_tool("never"))
        await until(partial(received, app, "command", 3), 10)
        app.socket.transport.abort()
        assert error_of(await calling)["code"] == "client_lost"


def error_of(result: Any) -> dict[str, Any]:
    """Return the error that a result tells, in its text as in its structure."""
    assert result.is_error
    error: dict[str, Any] = result.structured_content["error"]
    assert text_of(result).startswith(f"{error['code']}: {error['message']}")
    return error


# --- names ---


@pytest.mark.parametrize("mode", MODES)
async def test_reload_renames_no_tool_and_both_of_one_name_can_be_called(two_apis: Bridge, url: str, mode: str) -> None:
    other = {**ADD, "parameters": {"type": "object", "properties": {"count": {"type": "integer"}}}}

    def older() -> Any:
        return two_apis.app({"add": lambda parameters: {"older": parameters}}, capabilities=[ADD])

    async with contextlib.AsyncExitStack() as page, mcp_client(url, mode) as client:
        first = await page.enter_async_context(older())
        await two_apis.listed(first.client_id)
        async with two_apis.app({"add": lambda parameters: {"younger": parameters}}, capabilities=[other]):
            await until(partial(has, client, 2), 10)
            (younger,) = set(await names(client)) - {"add"}
            await both_answer(client, younger)
            await page.aclose()
            await until(partial(has, client, 1), 10)
            await page.enter_async_context(older())
            await lists(client, "add", younger)
            await both_answer(client, younger)


async def has(client: Any, count: int) -> bool:
    return len(await names(client)) == count


async def both_answer(client: Any, younger: str) -> None:
    """Call both tools, at each of the replicas."""
    for _ in range(2):
        result = await client.call_tool("add", {"title": "Milk"})
        assert result.structured_content == {"older": {"title": "Milk"}}
        result = await client.call_tool(younger, {"count": 2})
        assert result.structured_content == {"younger": {"count": 2}}
        await names(client)  # an odd number of requests: the other replica is next
