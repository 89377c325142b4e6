"""Clients that do not ask for resume: each byte is as it was before there was such a thing."""

import asyncio
import json
import re
from typing import Any

import pytest
from nats.aio.msg import Msg
from support.nats.nats_server import NatsServer
from support.played.app import socket_of
from support.played.running_gateway import running_gateway
from support.processes.gateways import Agent, agent
from support.settings import app_token
from websockets.asyncio.client import ClientConnection

from gateway.settings import GatewaySettings

WRITTEN = """\
upgrade connection sec-websocket-accept
{"type":"connection","clientId":"CLIENT","protocolVersion":"1","limits":{"maxMessageBytes":983040,"pingInterva\
lSeconds":25.0}}
{"type":"error","code":"invalid_frame","message":"1 of the capabilities left out, the others are registered: `\
capabilities[2]`: `name`: expected `str` of length >= 1","id":"f1","details":{"registered":2,"refused":[{"name\
":"capabilities[2]","message":"`capabilities[2]`: `name`: expected `str` of length >= 1"}]}}
{"type":"ack","id":"f2"}
{"type":"pong"}
{"type":"ack","id":"f3"}
{"type":"error","code":"invalid_frame","message":"`type`: invalid value 'nonsense'"}
{"type":"command","requestId":"CLIENT-1","target":"echo","action":null,"parameters":{},"timeoutMs":0,"agent":{\
"id":"agent-1"}}
{"requestId":"r1","status":"success","result":null,"clientId":"CLIENT","durationMs":0}
{"type":"command","requestId":"CLIENT-2","target":"slow","action":null,"parameters":{},"timeoutMs":0,"agent":{\
"id":"agent-1"}}
{"requestId":"r2","status":"error","error":{"code":"cancelled","message":"the caller cancelled the command","r\
etryable":false},"clientId":"CLIENT","durationMs":0}
{"type":"cancel","requestId":"CLIENT-2","reason":"enough"}
{"type":"command","requestId":"CLIENT-3","target":"slow","action":null,"parameters":{},"timeoutMs":0,"agent":{\
"id":"agent-1"}}
{"requestId":"r3","status":"error","error":{"code":"client_lost","message":"the client disconnected while the \
command was under way; it may have run","retryable":false},"clientId":"CLIENT","durationMs":0}
""".splitlines()


class Transcript:
    """All that an application and an agent get, with the names and times of this run replaced."""

    def __init__(self, socket: ClientConnection) -> None:
        self.lines: list[str] = []
        self.client_id = ""
        self._socket = socket

    async def get(self) -> Any:
        """Take the next frame."""
        text = await self._socket.recv()
        assert isinstance(text, str)
        frame = json.loads(text)
        self.client_id = self.client_id or frame["clientId"]
        self.note(text)
        return frame

    def note(self, text: str) -> None:
        """Write down something."""
        named = text.replace(self.client_id, "CLIENT").replace(self.client_id[:8], "CLIENT")
        self.lines.append(re.sub(r'"(durationMs|timeoutMs)":\d+', r'"\1":0', named))


async def transcript(gateway_url: str, caller: Agent) -> list[str]:
    """Return what comes of a usual session: frames of all kinds, commands, and an end with a command under way."""
    async with socket_of(gateway_url, app_token(), "/ws") as socket, asyncio.TaskGroup() as tasks:
        seen = Transcript(socket)
        assert socket.response is not None
        seen.lines.append(" ".join(name for name in socket.response.headers if name.lower() != "date"))
        await seen.get()
        for frame in (
            {"type": "capability", "capabilities": ["echo", "slow", {"name": ""}], "id": "f1"},
            {"type": "metadata", "metadata": {"title": "a page"}, "id": "f2"},
            {"type": "ping"},
            {"type": "unknown", "requestId": "never-sent", "id": "f3"},
            {"type": "nonsense"},
        ):
            await socket.send(json.dumps(frame))
            await seen.get()
        call = tasks.create_task(_answered(caller, seen, {"target": "echo", "requestId": "r1", "timeoutMs": 5000}))
        command = await seen.get()
        await socket.send(json.dumps({"type": "response", "requestId": command["requestId"], "status": "success"}))
        await call
        cancelled = tasks.create_task(_answered(caller, seen, {"target": "slow", "requestId": "r2", "timeoutMs": 5000}))
        await seen.get()
        await caller.tell(seen.client_id, {"op": "cancel", "requestId": "r2", "reason": "enough"})
        await cancelled
        await seen.get()
        lost = tasks.create_task(_answered(caller, seen, {"target": "slow", "requestId": "r3", "timeoutMs": 5000}))
        await seen.get()
        socket.transport.abort()
        await lost
        return seen.lines


async def _answered(caller: Agent, seen: Transcript, command: dict[str, Any]) -> None:
    answer: Msg = await caller.request(seen.client_id, command)
    seen.note(answer.data.decode())


async def test_nothing_is_different_for_clients_that_do_not_ask(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with agent(private_nats.url) as caller:
        async with running_gateway(private_nats.url) as url:
            with_resume = await transcript(url, caller)
        monkeypatch.setattr(GatewaySettings, "resume_secrets", [])
        async with running_gateway(private_nats.url) as url:
            without = await transcript(url, caller)
    assert with_resume == WRITTEN
    assert without == WRITTEN
