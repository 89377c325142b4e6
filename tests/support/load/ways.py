"""The ways in for agents, alike: send a slow command, hear its progress, return its answer; cancel it to give it up."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from protocol.errors import BridgeError
from protocol.messages import CommandRequest
from protocol.runtime.commands.caller import Caller
from protocol.runtime.nats.connection import connect
from protocol.runtime.settings import Settings
from protocol.subjects import ClientAddress
from support.played.agent_socket import agent_socket
from support.processes.bridge import Bridge
from support.processes.up import PATH, finished
from support.settings import agent_token, environment, settings_for

LOAD_SECONDS = 120
TARGET, TIMEOUT_MS = "slow", 60_000
BODY = {"command": {"target": TARGET}, "timeoutMs": TIMEOUT_MS}
STREAM = {"Accept": "text/event-stream"}
Told = list[dict[str, Any]]
Answer = dict[str, Any]
Way = Callable[[Bridge, str, Told], Coroutine[Any, Any, Answer]]


async def http(bridge: Bridge, client_id: str, told: Told) -> Answer:
    """Call by plain HTTP, which has no room for progress."""
    return dict((await bridge.http.post("/api/command", json=BODY | {"clientId": client_id})).json())


async def http_stream(bridge: Bridge, client_id: str, told: Told) -> Answer:
    """Call by HTTP and read the answer as a stream."""
    body = BODY | {"clientId": client_id}
    last: Answer = {}
    async with bridge.http.stream("POST", "/api/command", json=body, headers=STREAM) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                told.append(last := json.loads(line.removeprefix("data: ")))
    told.remove(last)
    return last


async def socket(bridge: Bridge, client_id: str, told: Told) -> Answer:
    """Call on an agent's WebSocket; its end is the command's."""
    async with agent_socket(bridge.agent_apis[0].url) as agent:
        ident = await agent.command(client_id, TARGET, command={"timeoutMs": TIMEOUT_MS})
        answer = await agent.answer(ident, TIMEOUT_MS / 1000)
        told += agent.all_received(type="progress", id=ident)
    return answer


async def command_line(bridge: Bridge, client_id: str, told: Told) -> Answer:
    """Type `agentbridge call`, and Ctrl-C to give it up."""
    arguments = ["call", client_id, TARGET, "--json", "--timeout", f"{TIMEOUT_MS // 1000}s"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agentbridge", *arguments),
        env={"PATH": PATH, "AGENTBRIDGE_TOKEN": agent_token(), **environment(bridge.nats_url)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        _, out, err = await finished(process, LOAD_SECONDS)
    except asyncio.CancelledError:
        process.send_signal(signal.SIGINT)
        await finished(process)
        raise
    told += [json.loads(line) for line in err.splitlines() if line.startswith(b"{")]
    return dict(json.loads(out)) if out else {"code": err.decode()}


async def nats(bridge: Bridge, client_id: str, told: Told) -> Answer:
    """Call over NATS by our own caller."""
    async with connect(settings_for(Settings, bridge.nats_url), "tests", "tests") as link, asyncio.TaskGroup() as tasks:
        caller = Caller(link, _unknown, tasks)
        await caller.start()
        address = ClientAddress("default", client_id)
        command = CommandRequest(target=TARGET, timeout_ms=TIMEOUT_MS)
        try:
            answer = await caller.call(
                address, command, agent_token(), lambda one: told.append(msgspec.to_builtins(one))
            )
        except BridgeError as exc:
            return {"code": exc.code.value}
    return dict(json.loads(msgspec.json.encode(answer)))


async def _unknown(address: ClientAddress, token: str | None) -> bool:
    return False


ALL: dict[str, Way] = {
    "http": http,
    "http stream": http_stream,
    "agent websocket": socket,
    "command line": command_line,
    "nats": nats,
}
