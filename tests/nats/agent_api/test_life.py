"""The life of an agent API: start, hostile connections, lost NATS, drain and end."""

import asyncio
import contextlib
import gc
import json
import signal
import socket
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.nats.nats_server import NatsServer
from support.played.agent_api import World, http_client, never, running_agent_api, world_at
from support.processes.child import Process
from support.settings import agent_token, bearer, environment
from support.wait import until

from agent_api.http import connections, server
from protocol.errors import ConfigurationError

COMMAND = {"clientId": "c1", "command": {"target": "f"}}


async def test_process_serves_and_ends_in_order(world: World, nats_url: str, tmp_path: Path) -> None:
    """A command under way at the signal is answered, a new one refused, and the process ends with 0."""
    go = asyncio.Event()
    await world.hold("c1", lambda message: go.wait())
    process = Process("agent_api", tmp_path, environment(nats_url, drain_seconds=10))
    try:
        await process.start()
        headers = bearer(agent_token())
        async with (
            httpx.AsyncClient(base_url=process.url, headers=headers, trust_env=False) as http,
            asyncio.TaskGroup() as tasks,
        ):
            waiting = tasks.create_task(http.post("/api/command", json=COMMAND))
            await until(lambda: world.received())
            assert (await http.get("/healthz")).status_code == 200  # a second connection, kept alive
            process.signal(signal.SIGTERM)
            await until(lambda: _missing(http, "the process is shutting down"))
            refused = await http.post("/api/command", json=COMMAND)
            go.set()
        assert waiting.result().json()["result"] is True
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert refused.headers["connection"] == "close"
        assert await process.ended() == 0
        assert "Traceback" not in process.log
        line = json.loads(process.out)
        told = {"process": "agent_api", "url": process.url, "level": "info", "message": "serving"}
        assert line == {**told, "at": line["at"]}
    finally:
        process.end()


async def test_lingering_process_is_not_ready_and_serves_on(world: World, nats_url: str, tmp_path: Path) -> None:
    """Who still comes is answered, on connections that were there before the signal and on new ones."""
    await world.hold("c1", lambda message: "as ever")
    process = Process("agent_api", tmp_path, environment(nats_url, linger_seconds=60))
    try:
        await process.start()
        client = partial(httpx.AsyncClient, base_url=process.url, headers=bearer(agent_token()), trust_env=False)
        async with client() as before, client() as after:
            assert (await before.get("/readyz")).status_code == 200
            process.signal(signal.SIGTERM)
            await until(lambda: _missing(before, "the process is shutting down"))
            assert (await after.get("/healthz")).status_code == 200
            for http in (before, after):
                answer = await http.post("/api/command", json=COMMAND)
                assert answer.json()["result"] == "as ever"
                assert "connection" not in answer.headers
    finally:
        process.end()


async def test_process_ends_once_it_has_lingered(nats_url: str, tmp_path: Path) -> None:
    process = Process("agent_api", tmp_path, environment(nats_url, linger_seconds=0.2))
    try:
        await process.start()
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
        assert process.log.count("draining") == 1
        assert "Traceback" not in process.log
    finally:
        process.end()


async def test_command_that_outlasts_the_drain_is_cancelled_and_told_so(world: World, nats_url: str) -> None:
    await world.hold("c1", never)
    async with contextlib.AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        api = await stack.enter_async_context(running_agent_api(nats_url, drain_seconds=0.2))
        http = await stack.enter_async_context(http_client(api))
        waiting = tasks.create_task(http.post("/api/command", json=COMMAND))
        await until(lambda: world.received())
        await api.drain()
        response = await waiting
    assert (response.status_code, response.json()["code"]) == (499, "cancelled")
    assert await until(lambda: world.received("cancel"))


async def test_two_processes_serve_the_same_clients(world: World, nats_url: str) -> None:
    await world.hold("c1", lambda message: "one of two")
    async with running_agent_api(nats_url) as first, running_agent_api(nats_url) as second:
        for api in (first, second):
            async with http_client(api) as http:
                assert (await http.post("/api/command", json=COMMAND)).json()["result"] == "one of two"


async def test_taken_port_is_a_line_for_the_operator(world: World, nats_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BaseExceptionGroup) as failure:
        async with running_agent_api(nats_url, api_port=taken.getsockname()[1]):
            pass
    assert failure.group_contains(ConfigurationError, match="AGENTBRIDGE_API_PORT")


async def test_limit_above_what_nats_takes_is_a_line_for_the_operator(nats_url: str) -> None:
    with pytest.raises(BaseExceptionGroup) as failure:
        async with running_agent_api(nats_url, max_message_bytes=1024 * 1024):
            pass
    assert failure.group_contains(ConfigurationError, match="AGENTBRIDGE_MAX_MESSAGE_BYTES")


async def test_without_authentication_everybody_is_let_in_and_no_token_passed_on(world: World, nats_url: str) -> None:
    await world.hold("c1", lambda message: "open")
    async with running_agent_api(nats_url, auth="off", jwt_secret=None) as api, http_client(api, "any text") as http:
        assert (await http.post("/api/command", json=COMMAND)).json()["result"] == "open"
    assert "Authorization" not in world.headers[0]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:8000"},
        {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
    ],
)
async def test_without_authentication_foreign_pages_are_kept_out(
    world: World, nats_url: str, headers: dict[str, str]
) -> None:
    await world.hold("c1", lambda message: "open")
    async with running_agent_api(nats_url, auth="off", jwt_secret=None) as api, http_client(api, "") as http:
        for answer in (
            await http.post("/api/command", json=COMMAND, headers=headers),
            await http.get("/api/clients", headers=headers),
            await http.delete("/api/clients/c1", headers=headers),
        ):
            assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
    assert world.messages == []


async def test_without_authentication_pages_of_its_own_and_allowed_ones_are_served(world: World, nats_url: str) -> None:
    await world.hold("c1", lambda message: "open")
    settings = {"auth": "off", "jwt_secret": None, "allowed_origins": "https://app.example.com"}
    async with running_agent_api(nats_url, **settings) as api, http_client(api, "") as http:
        port = api.url.rpartition(":")[2]
        for headers in (
            {"Origin": api.url},
            {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"},
            {"Host": f"[::1]:{port}", "Origin": "https://app.example.com"},
        ):
            assert (await http.post("/api/command", json=COMMAND, headers=headers)).json()["result"] == "open"


async def test_lost_nats_makes_commands_unavailable_and_its_return_mends_them(private_nats: NatsServer) -> None:
    async with running_agent_api(private_nats.url) as api, http_client(api) as http:
        async with world_at(private_nats.url) as world:
            await world.hold("c1", lambda message: "before")
            assert (await http.post("/api/command", json=COMMAND)).json()["result"] == "before"
            await until(lambda: _ready(http))
        private_nats.stop()
        await until(lambda: _missing(http, "NATS is away"))
        refused = await http.post("/api/command", json=COMMAND)
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert refused.headers["retry-after"] == "1"

        await private_nats.start()
        async with world_at(private_nats.url, bucket=False) as world:
            await world.hold("c1", lambda message: "after")
            assert await until(lambda: _result(http)) == "after"


async def test_request_that_does_not_arrive_in_time_ends_its_connection(
    nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PEER_SECONDS", 0.1)
    async with running_agent_api(nats_url) as api, http_client(api) as http:
        silent, half_a_head, half_a_body = [await _connect(api.url) for _ in range(3)]
        half_a_head[1].write(b"POST /api/command HTTP/1.1\r\nhost: x\r\n")
        half_a_body[1].write(_head(length=100) + b'{"clientId"')
        async with asyncio.timeout(5):
            for reader, writer in (silent, half_a_head, half_a_body):
                assert await reader.read() == b""
                writer.close()
        assert (await http.get("/healthz")).status_code == 200


async def test_answer_that_is_not_read_ends_its_connection(
    world: World, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PEER_SECONDS", 0.1)
    await world.hold("c1", lambda message: "x" * 900_000)
    async with running_agent_api(nats_url) as api:
        _, writer = await _connect(api.url)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        body = json.dumps(COMMAND).encode()
        for _ in range(20):
            writer.write(_head(length=len(body)) + body)
        async with asyncio.timeout(10):
            while not writer.transport.is_closing():
                writer.write(b"\r\n")
                await asyncio.sleep(0.01)
        writer.close()


async def test_connection_that_asks_no_more_is_closed_and_one_that_asks_is_kept(
    world: World, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 0.1)
    go = asyncio.Event()
    await world.hold("c1", lambda message: go.wait())
    body = json.dumps(COMMAND).encode()
    async with running_agent_api(nats_url) as api, http_client(api) as http:
        (idle, asked), (busy, asks) = [await _connect(api.url) for _ in range(2)]
        asked.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        asks.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nPOST /api/command HT")
        async with asyncio.timeout(10):
            assert b"200 OK" in await busy.readline()  # while the next request has begun to arrive
            asks.write(_head(length=len(body)).removeprefix(b"POST /api/command HT") + body)
            assert b"200 OK" in await idle.read()  # to its end
            go.set()
            assert (await busy.read()).count(b"200 OK") == 1
        for writer in (asked, asks):
            writer.close()
        assert (await http.post("/api/command", json=COMMAND)).json()["result"] is True


async def test_endless_head_ends_its_connection(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_HEAD_BYTES", 4096)
    async with running_agent_api(nats_url) as api:
        reader, writer = await _connect(api.url)
        writer.write(b"GET /healthz HTTP/1.1\r\nx-endless: ")
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"a" * 1024)
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await reader.read(4096)
        writer.close()


async def test_broken_request_is_refused_and_the_neighbours_served(nats_url: str) -> None:
    async with running_agent_api(nats_url) as api, http_client(api) as http:
        both = b"POST /api/command HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n"
        lines = (
            b"\x00\x01\x02",
            b"GET / HTTP/9.9",
            b"GET",
            b"GET /\xff HTTP/1.1",
            b"CONNECT x HTTP/1.1",
            b"GET x HTTP/1.1",
        )
        for broken in (both, _head(length=-1), _head(length=10**30), *(line + b"\r\n\r\n" for line in lines)):
            reader, writer = await _connect(api.url)
            writer.write(broken)
            async with asyncio.timeout(5):
                assert b" 400 " in await reader.readline()
            writer.close()
        assert (await http.get("/healthz")).status_code == 200


async def test_pipelined_commands_are_answered_in_their_order(world: World, nats_url: str) -> None:
    await world.hold("c1", lambda message: message["callerRequestId"])
    async with running_agent_api(nats_url) as api:
        reader, writer = await _connect(api.url)
        for number in range(3):
            body = json.dumps({**COMMAND, "command": {"target": "f", "requestId": f"r{number}"}}).encode()
            writer.write(_head(length=len(body)) + body)
        async with asyncio.timeout(5):
            for number in range(3):
                assert f'"result":"r{number}"'.encode() in await reader.readuntil(b'"durationMs":1}')
        writer.close()


async def test_callers_who_pipeline_and_leave_have_their_commands_cancelled(world: World, nats_url: str) -> None:
    await world.hold("c1", never)
    body = json.dumps(COMMAND).encode()
    async with running_agent_api(nats_url) as api:
        callers = [await _connect(api.url) for _ in range(3)]
        for _, writer in callers:
            writer.write(2 * (_head(length=len(body)) + body))
        await until(lambda: len(world.received()) == 3)
        for _, writer in callers:
            writer.close()
        assert await until(lambda: len(world.received("cancel")) == 3)
        assert len(world.received()) == 3  # the commands behind were not begun


@pytest.mark.parametrize("in_segments", [False, True])
@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_upgrade_that_is_not_offered_leaves_a_request_what_it_is(
    world: World, nats_url: str, protocol: str, in_segments: bool
) -> None:
    await world.hold("c1", lambda message: message["parameters"]["title"])
    smuggled = json.dumps({**COMMAND, "command": {"target": "f", "parameters": {"title": "smuggled"}}}).encode()
    inner = (_head(length=len(smuggled)) + smuggled).decode()
    bodies = [
        json.dumps({**COMMAND, "command": {"target": "f", "parameters": {"title": title}}}).encode()
        for title in ("first", inner, "last")
    ]
    async with running_agent_api(nats_url) as api:
        reader, writer = await _connect(api.url)
        for body in bodies:
            for part in (_head(length=len(body), Connection="Upgrade", Upgrade=protocol), body[:9], body[9:]):
                writer.write(part)
                if in_segments:
                    await writer.drain()
                    await asyncio.sleep(0.02)
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                assert json.loads(await reader.readexactly(length))["success"]
        writer.close()
    titles = [message["parameters"]["title"] for message in world.received()]
    assert titles == ["first", inner, "last"]


async def test_closed_connections_are_freed_without_a_collection(
    world: World, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, made = weakref.WeakSet[connections.HttpConnection](), list[None]()

    class Connection(connections.HttpConnection):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            alive.add(self)
            made.append(None)

    monkeypatch.setattr(server, "HttpConnection", Connection)
    await world.hold("c1", lambda message: None)
    body = json.dumps(COMMAND).encode()
    command, upgrade = _head(length=len(body)) + body, b"GET /api/ws HTTP/1.1\r\nhost: x\r\n"
    upgrade += b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
    async with running_agent_api(nats_url) as api:
        gc.collect()
        gc.disable()
        try:
            for request in (command, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", upgrade):
                reader, writer = await _connect(api.url)
                writer.write(request)
                assert await reader.readline()
                writer.close()
                await until(lambda: not alive)
        finally:
            gc.enable()
    assert len(made) == 3


async def test_caller_who_leaves_in_the_middle_of_its_body_leaves_nothing_behind(world: World, nats_url: str) -> None:
    await world.hold("c1", lambda message: None)
    async with running_agent_api(nats_url) as api, http_client(api) as http:
        _, writer = await _connect(api.url)
        writer.write(_head(length=100) + b'{"clientId": "c1"')
        await writer.drain()
        writer.close()
        assert (await http.post("/api/command", json=COMMAND)).status_code == 200
    assert len(world.received()) == 1


def _head(length: int, **more: str) -> bytes:
    headers = {
        "host": "x",
        "content-type": "application/json",
        "content-length": length,
        **bearer(agent_token()),
        **more,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST /api/command HTTP/1.1\r\n{lines}\r\n".encode()


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def _ready(http: httpx.AsyncClient) -> bool:
    return (await http.get("/readyz")).status_code == 200


async def _missing(http: httpx.AsyncClient, what: str) -> bool:
    """Return whether the process says that it is not ready for this reason."""
    response = await http.get("/readyz")
    return response.status_code == 503 and what in response.json()["details"]["missing"]


async def _result(http: httpx.AsyncClient) -> Any:
    return (await http.post("/api/command", json=COMMAND)).json().get("result")
