"""Applications and agents as simple self-hosted servers have them, unchanged apart from URL and token."""

import asyncio
import json
from typing import Any

import httpx
from support.processes.bridge import Bridge
from support.settings import app_token
from websockets.asyncio.client import ClientConnection, connect

CLICK = {"target": "btn-save", "action": "click", "parameters": {"text": "hello"}}


async def _simple_client(socket: ClientConnection) -> str:
    """Register with a loose frame, as frontends of simple servers do, and return the client id."""
    hello = json.loads(await socket.recv())
    assert hello["type"] == "connection"
    capabilities = [{"id": "btn-save", "type": "component", "componentType": "button", "actions": ["click"]}]
    await socket.send(json.dumps({"type": "capability", "capabilities": capabilities}))
    return str(hello["clientId"])


async def _answer_one(socket: ClientConnection, answer: dict[str, Any]) -> dict[str, Any]:
    command: dict[str, Any] = json.loads(await socket.recv())
    await socket.send(json.dumps({"type": "response", "requestId": command["requestId"], **answer}))
    return command


async def _post(bridge: Bridge, body: dict[str, Any]) -> httpx.Response:
    return await bridge.http.post("/api/command", json=body)


async def test_agents_command_is_answered_by_the_application(bridge: Bridge) -> None:
    async with connect(f"{bridge.gateway_url}?token={app_token()}") as socket, asyncio.timeout(10):
        client_id = await _simple_client(socket)
        await bridge.listed(client_id)
        answering = asyncio.gather(
            _answer_one(socket, {"status": "success", "result": {"clicked": True}}),
            _post(bridge, {"clientId": client_id, "command": CLICK}),
        )
        command, answer = await answering
    assert {name: command[name] for name in ("type", "target", "action", "parameters")} == {
        "type": "command",
        **CLICK,
    }
    assert answer.status_code == httpx.codes.OK
    body = answer.json()
    assert (body["success"], body["clientId"], body["result"]) == (True, client_id, {"clicked": True})


async def test_capabilities_are_listed_as_they_were_sent(bridge: Bridge) -> None:
    async with connect(f"{bridge.gateway_url}?token={app_token()}") as socket, asyncio.timeout(10):
        client_id = await _simple_client(socket)
        await bridge.listed(client_id)
        found = await bridge.capabilities()
    assert found == {
        client_id: [{"id": "btn-save", "type": "component", "componentType": "button", "actions": ["click"]}]
    }


async def test_applications_error_reaches_the_agent(bridge: Bridge) -> None:
    async with connect(f"{bridge.gateway_url}?token={app_token()}") as socket, asyncio.timeout(10):
        client_id = await _simple_client(socket)
        await bridge.listed(client_id)
        error = {"status": "error", "error": {"message": "The document is locked"}}
        _, answer = await asyncio.gather(
            _answer_one(socket, error), _post(bridge, {"clientId": client_id, "command": CLICK})
        )
    assert answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR
    body = answer.json()
    assert (body["code"], body["message"], body["retryable"]) == ("command_failed", "The document is locked", False)


async def test_unknown_client_is_not_found_in_the_words_of_simple_servers(bridge: Bridge) -> None:
    answer = await _post(bridge, {"clientId": "nobody", "command": CLICK})
    assert (answer.status_code, answer.json()["error"]) == (httpx.codes.NOT_FOUND, "Client not found")
