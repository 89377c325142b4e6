"""The library in Node, beside a real bridge: what a program offers, tells, is asked for and hears."""

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, NamedTuple

import httpx
import nats
import pytest
import pytest_asyncio
from support.processes.bridge import Bridge
from support.processes.javascript import needs_node, node_module
from support.processes.library import MODULE, LibraryProgram, library_program
from support.settings import app_token
from support.wait import subscribed, until

pytestmark = [needs_node, pytest.mark.asyncio(loop_scope="module")]
NAMES = ["add", "wait", "fail", "slip", "mcp", "risky", "act", "lamp"]


class Running(NamedTuple):
    """A program, and the bridge that it is connected to."""

    program: LibraryProgram
    bridge: Bridge

    async def call(self, target: str, parameters: Any = None, **more: Any) -> httpx.Response:
        return await self.bridge.call(await self.program.client_id(), target, parameters, **more)

    async def act(self, what: str) -> Any:
        answer = await self.call("act", {"what": what})
        assert answer.status_code == httpx.codes.OK, answer.text
        return answer.json()["result"]

    async def offered(self) -> dict[str, Any]:
        client_id = await self.program.client_id()
        listed = await until(partial(self._listed, client_id), 10)  # an agent API hears of it after the gateway
        return {each.get("name") or each["id"]: each for each in listed}

    async def _listed(self, client_id: str) -> list[dict[str, Any]]:
        return list((await self.bridge.capabilities()).get(client_id, []))


@pytest_asyncio.fixture(loop_scope="module")
async def running(bridge: Bridge) -> AsyncIterator[Running]:
    async with library_program(bridge.gateway_url, app_token()) as program:
        yield Running(program, bridge)


async def test_program_offers_tools_as_webmcp_writes_them(running: Running) -> None:
    answer = await running.call("add", {"by": 2})
    assert answer.json()["result"] == {"by": 2, "agent": {"id": "agent-1"}, "hasId": True}
    assert running.program.told("taken") == [["taken", "InvalidStateError"]]
    offered = await running.offered()
    assert list(offered) == NAMES
    assert offered["wait"]["parameters"] == {"type": "object"}


async def test_list_changes_at_any_time(running: Running) -> None:
    await running.act("unregister")
    await until(lambda: gone(running, "add"), 10)
    assert (await running.call("add", {"by": 2})).json()["code"] == "unknown_capability"


async def gone(running: Running, name: str) -> bool:
    return name not in await running.offered()


@pytest.mark.parametrize(
    ("target", "code", "message"),
    [
        ("fail", "no_ink", "there is no ink"),
        ("slip", "RangeError", "out of range"),
        ("mcp", "tool_error", "as MCP"),
        ("risky", "declined", "there is no user to ask"),
    ],
)
async def test_failure_reaches_the_agent_in_its_own_words(
    running: Running, target: str, code: str, message: str
) -> None:
    answer = (await running.call(target)).json()
    assert (answer["code"], answer["message"], answer["details"]["code"]) == ("command_failed", message, code)


async def test_cancelled_command_is_aborted(running: Running) -> None:
    answer = await running.call("wait", timeout_ms=300)
    assert answer.json()["code"] == "timeout"
    assert await running.program.heard("aborted") == ["aborted", "AbortError"]
    assert (await running.program.heard("command", "cancelled"))[2] == "timeout"


async def test_progress_is_told_to_a_caller_who_asks(running: Running) -> None:
    body = {"clientId": await running.program.client_id(), "command": {"target": "add", "parameters": {"by": 1}}}
    accept = {"Accept": "text/event-stream"}
    answer = await running.bridge.http.post("/api/command", json=body, headers=accept)
    assert '"progress":1' in answer.text.replace(" ", "").replace("1.0", "1")
    assert "half" in answer.text


async def test_state_of_a_component_and_metadata_are_kept_current(running: Running) -> None:
    assert (await running.call("lamp", action="toggle")).json()["result"] is True
    await running.act("metadata")

    async def current() -> bool:
        found = await running.bridge.http.get("/api/clients", params={"metadata.room": "kitchen"})
        lamp = (await running.offered())["lamp"]
        return len(found.json()) == 1 and bool(lamp["properties"] == {"on": True, "colour": "red"})

    await until(current, 10)


async def test_event_is_stored_and_the_client_stays_the_same_when_its_gateway_dies(running: Running) -> None:
    first = await running.program.client_id()
    gateway = running.bridge.gateways[0]
    async with await nats.connect(running.bridge.nats_url) as client:
        events = await client.subscribe("agentbridge.default.event.>")
        await subscribed(client)
        assert await running.act("emit") == "my-id"
        assert json.loads((await events.next_msg(timeout=5)).data)["data"] == {"hello": "world"}
    await gateway.kill()
    assert (await running.program.heard("state", "waiting"))[3] in ("the connection was lost", "the gateway restarts")
    await gateway.start()

    def back() -> str:
        ids = [words[2] for words in running.program.told("state", "ready")]
        return ids[-1] if len(ids) > 1 else ""

    assert await until(back, 30) == first
    await until(lambda: listed(running, first), 10)
    assert (await running.bridge.call(first, "add", {"by": 3})).json()["result"]["by"] == 3


async def listed(running: Running, client_id: str) -> bool:
    return client_id in await running.bridge.capabilities()


async def test_program_without_a_websocket_is_told_what_to_give() -> None:
    code = """
globalThis.WebSocket = undefined;
const { connect } = await import(library);
try { connect({ url: "ws://127.0.0.1:1" }) } catch (error) { console.log(error.message) }
"""
    async with node_module(code, {"library": MODULE}) as program:
        [said] = await until(lambda: program.told, 15)
    assert "that of the package ws" in said


async def test_program_that_has_closed_its_connection_ends_although_an_agent_is_stopped(bridge: Bridge) -> None:
    code = """
import WebSocket from "ws";
const { connect } = await import(library);
const connected = connect({ url, token, WebSocket });
connected.addEventListener("state", ({ detail }) => {
  if (detail.phase !== "ready") return;
  connected.stop("agent-1", { seconds: 600 });
  connected.close();
});
process.on("exit", () => console.log("ended"));
"""
    names = {"library": MODULE, "url": bridge.gateway_url, "token": app_token()}
    async with node_module(code, names) as program:
        await until(lambda: program.told == ["ended"], 30)
