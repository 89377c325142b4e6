"""ActionCable at a gateway: who is let in, pings, a real page, and what strangers may try."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.dialects.actioncable_peer import IDENTIFIER, command
from support.processes.browser import open_page
from support.processes.child import Process
from support.processes.gateways import Agent, gateway_process, shared_gateway
from support.processes.javascript import FOLDER, needs_node, node_app, page_app
from support.settings import app_token
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

ACTIONCABLE = Subprotocol("actioncable-v1-json")
UNSUPPORTED = Subprotocol("actioncable-unsupported")


@pytest.fixture(scope="module")
def gateway(shared_nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with shared_gateway(tmp_path_factory.mktemp("gateway"), shared_nats_url) as running:
        yield running
        assert "Traceback" not in running.log


def cable_url(gateway: Process) -> str:
    return f"ws://{urlsplit(gateway.url).netloc}/cable"


@contextlib.asynccontextmanager
async def cable(gateway: Process, token: str | None = None) -> AsyncIterator[ClientConnection]:
    """Open a connection as the library does, with its token in a subprotocol."""
    offered = [ACTIONCABLE, UNSUPPORTED, Subprotocol(f"bearer.{app_token() if token is None else token}")]
    async with connect(cable_url(gateway), subprotocols=offered, proxy=None) as socket:
        yield socket


async def heard(socket: ClientConnection) -> Any:
    async with asyncio.timeout(10):
        return json.loads(await socket.recv())


async def told(socket: ClientConnection) -> Any:
    """Return the next message that is no ping."""
    while (message := await heard(socket)).get("type") == "ping":
        pass
    return message


async def said(socket: ClientConnection, **frame: Any) -> None:
    await socket.send(command("message", json.dumps(frame)).decode())


async def subscribed(socket: ClientConnection, *capabilities: Any) -> str:
    """Subscribe and register; return the client's id."""
    assert await told(socket) == {"type": "welcome"}
    await socket.send(command("subscribe").decode())
    assert await told(socket) == {"identifier": IDENTIFIER, "type": "confirm_subscription"}
    client_id = (await told(socket))["message"]["clientId"]
    await said(socket, type="capability", capabilities=capabilities, id="f1")
    assert await told(socket) == {"identifier": IDENTIFIER, "message": {"type": "ack", "id": "f1"}}
    return str(client_id)


async def test_subprotocol_of_the_library_is_the_one_that_comes_back(gateway: Process) -> None:
    async with cable(gateway) as socket:
        assert socket.subprotocol == ACTIONCABLE


@pytest.mark.parametrize(("token", "code"), [("nonsense", 4003), ("", 4001)])
async def test_refused_token_is_unauthorized_and_the_library_does_not_try_again(
    gateway: Process, token: str, code: int
) -> None:
    offered = [ACTIONCABLE, *([Subprotocol(f"bearer.{token}")] if token else [])]
    async with connect(cable_url(gateway), subprotocols=offered, proxy=None) as socket:
        assert await heard(socket) == {"type": "disconnect", "reason": "unauthorized", "reconnect": False}
        with pytest.raises(ConnectionClosed):
            await heard(socket)
        assert socket.close_code == code


async def test_ping_comes_every_few_seconds_whatever_the_client_sends(gateway: Process) -> None:
    async with cable(gateway) as socket:
        await subscribed(socket)
        while (message := await heard(socket)).get("type") != "ping":
            await said(socket, type="metadata", metadata={})
        assert isinstance(message["message"], int)


@needs_node
async def test_library_keeps_its_connection_while_nothing_is_said(gateway: Process) -> None:
    """It would open another one after four seconds without a ping (six by default)."""
    async with node_app("actioncable", cable_url(gateway), app_token()) as app, cable(gateway) as neighbour:
        await app.heard("registered")
        assert await told(neighbour) == {"type": "welcome"}
        for _ in range(4):
            while (await heard(neighbour)).get("type") != "ping":
                pass
        assert app.all_heard("disconnect") == []
        assert len(app.all_heard("connection")) == 1


@needs_node
async def test_second_subscription_is_rejected_and_one_that_ended_offers_nothing(
    gateway: Process, caller: Agent
) -> None:
    async with node_app("actioncable", cable_url(gateway), app_token()) as app:
        await app.heard("registered")
        await app.call("subscribeTo", {"channel": "AgentBridgeChannel", "room": 1})
        await app.heard("second", "rejected")
        assert (await caller.call(app.client_id, "add", {"a": 1, "b": 2}))["result"] == 3
        await app.call("unsubscribe")
        await app.call("subscribeTo", {"channel": "AgentBridgeChannel", "room": 1})
        await app.heard("second", "connected")
        assert await caller.refused(app.client_id, {"target": "fail"}) == "unknown_capability"


@needs_node
@pytest.mark.browser
async def test_page_with_the_library_executes_commands(tmp_path: Path, shared_nats_url: str, caller: Agent) -> None:
    page_file = tmp_path / "page.html"
    page_file.write_text("<!DOCTYPE html><title>an application</title>")
    async with (
        gateway_process(tmp_path, shared_nats_url, allowed_origins="null") as gateway,
        open_page(page_file.as_uri()) as page,
    ):
        library = FOLDER / "node_modules/@rails/actioncable/app/assets/javascripts/actioncable.js"
        arguments = f"'{cable_url(gateway)}', '{app_token()}'"

        def run() -> str:
            start = f"runActionCable(ActionCable, {{ Application, CAPABILITIES }}, {arguments}, tell)"
            return f"{library.read_text()};\n{start}; undefined"

        app = await page_app(page, run, ["actioncable.js"])
        await app.heard("registered")
        assert (await caller.call(app.client_id, "add", {"a": 1, "b": 2}))["result"] == 3


@pytest.mark.parametrize(
    "data",
    [
        "[" * 3000,
        '{"command":"message","identifier":',
        command("message", "{}", '{"channel":"ChatChannel"}').decode(),
        command("message", '{"type":"event","event":"x","data":' + "[" * 3000).decode(),
        command("subscribe", identifier="x" * 5000).decode(),
        b"binary",
    ],
    ids=lambda data: str(data[:60]),
)
async def test_bad_message_is_told_and_the_next_one_is_taken(gateway: Process, data: str | bytes) -> None:
    async with cable(gateway) as socket:
        await subscribed(socket, "add")
        await socket.send(data)
        assert (await told(socket))["message"]["code"] == "invalid_frame"
        await said(socket, type="metadata", metadata={}, id="f2")
        assert (await told(socket))["message"] == {"type": "ack", "id": "f2"}


async def test_flood_of_bad_messages_ends_its_connection_and_no_other(gateway: Process, caller: Agent) -> None:
    async with cable(gateway) as socket, cable(gateway) as neighbour:
        client_id = await subscribed(neighbour, "add")
        assert await told(socket) == {"type": "welcome"}
        for _ in range(300):
            await socket.send("nonsense")
        assert await told(socket) == {"type": "disconnect", "reason": "remote", "reconnect": False}
        with pytest.raises(ConnectionClosed):
            await heard(socket)
        assert (socket.close_code, socket.close_reason) == (1008, "too many bad frames")

        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(caller.call(client_id, "add"))
            request_id = (await told(neighbour))["message"]["requestId"]
            await said(neighbour, type="response", requestId=request_id, status="success", result=1)
        assert answer.result()["result"] == 1


async def test_many_rejected_subscriptions_take_nothing(gateway: Process) -> None:
    async with cable(gateway) as socket:
        await subscribed(socket)
        for number in range(500):
            await socket.send(command("subscribe", identifier=f'{{"channel":"C{number}"}}').decode())
        rejected = [(await told(socket))["type"] for _ in range(500)]
    assert set(rejected) == {"reject_subscription"}
