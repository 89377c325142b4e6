"""Socket.IO at a gateway: who is let in, heartbeats, a real page, and what strangers may try."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from support.nats.nats_server import NatsServer
from support.played.running_gateway import running_gateway
from support.processes.browser import open_page
from support.processes.child import Process
from support.processes.gateways import Agent, gateway_process, shared_gateway
from support.processes.javascript import FOLDER, needs_node, node_app, page_app
from support.settings import agent_token, app_token
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gateway import introduction

QUERY = "EIO=4&transport=websocket"


@pytest.fixture(scope="module")
def gateway(shared_nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with shared_gateway(tmp_path_factory.mktemp("gateway"), shared_nats_url) as running:
        yield running
        assert "Traceback" not in running.log


def http_url(gateway: Process) -> str:
    return f"http://{urlsplit(gateway.url).netloc}"


def ws_url(gateway: Process, query: str = QUERY) -> str:
    return f"ws://{urlsplit(gateway.url).netloc}/socket.io/?{query}"


@contextlib.asynccontextmanager
async def engine(gateway: Process, query: str = QUERY) -> AsyncIterator[ClientConnection]:
    """Open Engine.IO's connection, without a session."""
    async with connect(ws_url(gateway, query), proxy=None) as socket:
        assert (await heard(socket))[0] == "0"
        yield socket


async def heard(socket: ClientConnection) -> str:
    async with asyncio.timeout(10):
        message = await socket.recv()
    assert isinstance(message, str)
    return message


async def ended(socket: ClientConnection) -> list[str]:
    """Read to the end of a connection; return what came before it."""
    said: list[str] = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            said.append(await heard(socket))
    return said


async def connected(socket: ClientConnection, *capabilities: Any) -> str:
    """Connect with a good token and register; return the client's id."""
    await socket.send(f'40{{"token":"{app_token()}"}}')
    sid = json.loads((await heard(socket))[2:])["sid"]
    assert json.loads((await heard(socket))[2:])[1]["clientId"] == sid
    await socket.send(f'420["capability",{json.dumps({"capabilities": capabilities})}]')
    assert await heard(socket) == '430[{"status":"success"}]'
    return str(sid)


# --- who is let in ---


@needs_node
@pytest.mark.parametrize(
    ("token", "message", "code"),
    [
        ("", "authentication required", 4001),
        ("nonsense", "the token does not verify", 4003),
        ("agent", "role app", 4003),
    ],
)
async def test_refused_token_is_a_connect_error_and_the_client_does_not_try_again(
    gateway: Process, token: str, message: str, code: int
) -> None:
    async with node_app("socketio", http_url(gateway), agent_token() if token == "agent" else token) as app:
        _, said, data = await app.heard("connect_error")
        assert message in said
        assert data == {"code": code}
        await app.call("disconnect")
    assert len(app.all_heard("connect_error")) == 1


async def test_token_may_stand_in_the_query(gateway: Process) -> None:
    async with engine(gateway, f"{QUERY}&token={app_token()}") as socket:
        await socket.send("40")
        assert (await heard(socket)).startswith('40{"sid":')


async def test_token_of_connect_comes_before_that_of_the_query(gateway: Process) -> None:
    async with engine(gateway, f"{QUERY}&token=nonsense") as socket:
        await socket.send(f'40{{"token":"{app_token()}"}}')
        assert (await heard(socket)).startswith('40{"sid":')


async def test_what_is_sent_right_behind_connect_waits_for_the_session(gateway: Process, caller: Agent) -> None:
    async with engine(gateway) as socket:
        await socket.send(f'40{{"token":"{app_token()}"}}')
        await socket.send('427["capability",{"capabilities":["add"]}]')
        await socket.send('428["metadata",{"metadata":{"a":1}}]')
        said = [await heard(socket) for _ in range(4)]
    assert [text[:3] for text in said] == ["40{", "42[", "437", "438"]


@pytest.mark.parametrize("query", ["EIO=4&transport=polling", "EIO=4"])
async def test_polling_is_refused_in_the_words_of_engine_io(gateway: Process, query: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"{http_url(gateway)}/socket.io/?{query}")
    if "polling" in query:
        assert (answer.status_code, answer.json()) == (400, {"code": 0, "message": "Transport unknown"})
        assert answer.headers["content-type"] == "application/json"
    else:
        assert answer.status_code == httpx.codes.UPGRADE_REQUIRED


# --- heartbeats ---


@needs_node
async def test_client_hears_pings_at_regular_times_however_much_it_sends(tmp_path: Path, shared_nats_url: str) -> None:
    """A client of Socket.IO takes its connection for lost without them, whatever else it hears."""
    async with (
        gateway_process(tmp_path, shared_nats_url, ping_interval_seconds=1) as gateway,
        node_app("socketio", http_url(gateway), app_token()) as app,
    ):
        await app.heard("registered")
        async with asyncio.TaskGroup() as tasks:

            async def chat() -> None:
                while not app.all_heard("ping")[2:]:
                    await app.call("emit", "metadata", {"metadata": {"a": 1}})

            tasks.create_task(chat())
            await app.heard("ping", count=3)
        assert app.all_heard("disconnect") == []


async def test_silent_client_is_pinged_and_lost_if_it_does_not_answer(tmp_path: Path, shared_nats_url: str) -> None:
    async with (
        gateway_process(tmp_path, shared_nats_url, ping_interval_seconds=1, ping_timeout_seconds=1) as gateway,
        engine(gateway) as socket,
    ):
        await connected(socket)
        said = await ended(socket)
    assert set(said) == {"2"}
    assert (socket.close_code, socket.close_reason) == (1011, "no pong")


# --- a real page ---


@needs_node
@pytest.mark.browser
async def test_page_with_the_browser_build_executes_commands(
    tmp_path: Path, shared_nats_url: str, caller: Agent
) -> None:
    page_file = tmp_path / "page.html"
    page_file.write_text("<!DOCTYPE html><title>an application</title>")
    async with (
        gateway_process(tmp_path, shared_nats_url, allowed_origins="null") as gateway,
        open_page(page_file.as_uri()) as page,
    ):
        library = (FOLDER / "node_modules/socket.io-client/dist/socket.io.min.js").read_text
        arguments = f"'{http_url(gateway)}', '{app_token()}'"

        def run() -> str:
            return f"{library()};\nrunSocketIo(io, {{ Application, CAPABILITIES }}, {arguments}, tell); undefined"

        app = await page_app(page, run, ["socketio.js"])
        await app.heard("registered", {"status": "success"})
        assert (await caller.call(app.client_id, "add", {"a": 1, "b": 2}))["result"] == 3
        assert app.all_heard("connect") == [["connect", app.client_id]]


# --- strangers ---


@pytest.mark.parametrize(
    "data",
    ["4" + "[" * 3000, "42[", "40[", "42" + "9" * 5000, "nonsense", "", '451-["event",{"_placeholder":true,"num":0}]'],
    ids=lambda data: data[:12],
)
async def test_garbage_before_connect_ends_the_connection(gateway: Process, data: str) -> None:
    async with engine(gateway) as socket:
        await socket.send(data)
        assert [text[:12] for text in await ended(socket)] == ['44{"message"']
        assert socket.close_code == 1008


async def test_connects_to_namespaces_that_are_not_there_are_bounded(gateway: Process) -> None:
    async with engine(gateway) as socket:
        for number in range(20):
            await socket.send(f"40/n{number},")
        said = await ended(socket)
    assert said[0] == '44/n0,{"message":"Invalid namespace"}'
    assert len(said) == 17
    assert socket.close_code == 1008


@pytest.mark.parametrize(
    "data",
    [
        "42" + "[" * 3000,
        '42["event",{"event":"x"',
        '42/admin,["event",{"event":"x"}]',
        "42" + "9" * 5000 + '["event",{"event":"x"}]',
        '451-["event",{"_placeholder":true,"num":0}]',
        b"\x04binary",
        "40",
        "99",
    ],
    ids=lambda data: str(data[:12]),
)
async def test_bad_packet_is_told_and_the_next_one_is_taken(gateway: Process, data: str | bytes) -> None:
    async with engine(gateway) as socket:
        await connected(socket, "add")
        await socket.send(data)
        name, error = json.loads((await heard(socket))[2:])
        assert (name, error["code"]) == ("error", "invalid_frame")
        await socket.send('421["metadata",{"metadata":{}}]')
        assert await heard(socket) == '431[{"status":"success"}]'


async def test_flood_of_bad_packets_ends_its_connection_and_no_other(gateway: Process, caller: Agent) -> None:
    async with engine(gateway) as socket, engine(gateway) as neighbour:
        client_id = await connected(neighbour, "add")
        await connected(socket)
        for _ in range(300):
            await socket.send("nonsense")
        assert (await ended(socket))[-1] == "41"
        assert (socket.close_code, socket.close_reason) == (1008, "too many bad frames")

        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(caller.call(client_id, "add"))
            _, command = json.loads((await heard(neighbour))[2:])
            await neighbour.send(
                f'42["response",{{"requestId":"{command["requestId"]}","status":"success","result":1}}]'
            )
        assert answer.result()["result"] == 1


async def test_client_that_does_not_say_who_it_is_is_sent_away(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(introduction, "PATIENCE_SECONDS", 0.1)
    async with (
        running_gateway(private_nats.url) as url,
        connect(f"{url.removesuffix('/ws')}/socket.io/?{QUERY}") as socket,
    ):
        said = await ended(socket)
    assert (said[0][0], json.loads(said[1][2:])["data"]) == ("0", {"code": 1008})
    assert (socket.close_code, socket.close_reason) == (1008, "authenticate within ten seconds")


async def test_client_that_goes_before_it_has_a_session_leaves_nothing(gateway: Process) -> None:
    before = gateway.log.count("refused")
    for _ in range(3):
        async with engine(gateway):
            pass
    async with engine(gateway) as socket:
        await connected(socket)
        assert gateway.log.count("refused") == before


async def test_client_that_says_something_else_is_logged_with_its_reason(tmp_path: Path, shared_nats_url: str) -> None:
    async with gateway_process(tmp_path, shared_nats_url) as gateway, engine(gateway) as socket:
        await socket.send("nonsense")
        await ended(socket)
        assert "the last for no_introduction: not a packet of Engine.IO" in gateway.log
