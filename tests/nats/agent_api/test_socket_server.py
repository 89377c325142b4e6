"""Who may open an agents' WebSocket and for how long, what it may send, and how each of them ends."""

import asyncio
import base64
import contextlib
import gc
import json
import logging
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from support.played.agent_api import RunningApi, World, never, running_agent_api
from support.played.agent_socket import agent_socket, opened
from support.played.app import ws_url
from support.settings import agent_token, app_token, bearer
from support.wait import until
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from agent_api.socket import server
from agent_api.socket.live import LiveSocket
from agent_api.socket.session import AgentSession
from protocol.access import Principal
from protocol.runtime.tokens import Verifier
from protocol.runtime.websocket.connection import BoundedSocket

ORIGIN = "https://app.example.com"
LIMIT = 64 * 1024
UNREAD = 128 * 1024
COMMAND = {"clientId": "c1", "command": {"target": "f"}}


@pytest.fixture
async def api(world: World, nats_url: str) -> AsyncIterator[RunningApi]:
    settings = {"max_message_bytes": LIMIT, "send_buffer_bytes": UNREAD, "allowed_origins": ORIGIN}
    async with running_agent_api(nats_url, **settings) as running:
        yield running


async def close_code(socket: ClientConnection) -> int | None:
    async with asyncio.timeout(5):
        await socket.wait_closed()
    return socket.close_code


async def answers(socket: ClientConnection) -> bool:
    """Tell whether a socket is one that agents can use."""
    await socket.send('{"type":"ping"}')
    async with asyncio.timeout(5):
        return bool(json.loads(await socket.recv()) == {"type": "pong"})


# --- credentials ---


async def test_token_in_the_header_the_query_or_a_subprotocol(api: RunningApi) -> None:
    token, url = agent_token(), ws_url(api.url) + "/api/ws"
    async with opened(api.url, token) as socket:
        assert await answers(socket)
    async with connect(f"{url}?token={token}", proxy=None) as socket:
        assert await answers(socket)
    both = [Subprotocol("agentbridge.v1"), Subprotocol(f"bearer.{token}")]
    for offered in (both, both[::-1]):
        async with connect(url, subprotocols=offered, proxy=None) as socket:
            assert socket.subprotocol == "agentbridge.v1"
            assert await answers(socket)


async def test_no_token_is_4001(api: RunningApi) -> None:
    async with opened(api.url, None) as socket:
        assert await close_code(socket) == 4001


@pytest.mark.parametrize("token", ["nonsense", app_token(), agent_token(ttl_seconds=-1), agent_token(audience="other")])
async def test_token_that_does_not_do_is_4003(api: RunningApi, token: str) -> None:
    async with opened(api.url, token) as socket:
        assert await close_code(socket) == 4003
        assert socket.close_reason


async def test_foreign_origin_is_403_before_the_handshake(api: RunningApi) -> None:
    for origin in ("https://evil.example.com", "null", f"{ORIGIN}.evil"):
        with pytest.raises(InvalidStatus) as refused:
            async with opened(api.url, agent_token(), headers={"Origin": origin}):
                pass
        response = refused.value.response
        assert (response.status_code, json.loads(response.body)["code"]) == (403, "permission_denied")
        assert response.headers["Content-Type"] == "application/json"
    async with opened(api.url, agent_token(), headers={"Origin": ORIGIN}) as socket:
        assert await answers(socket)


async def test_without_authentication_only_this_machine_gets_in(world: World, nats_url: str) -> None:
    off = {"auth": "off", "jwt_secret": None, "allowed_origins": "*"}
    async with running_agent_api(nats_url, **off) as api:
        async with opened(api.url, None) as socket:
            assert await answers(socket)
        port = urlsplit(api.url).port
        with pytest.raises(InvalidStatus) as refused:
            async with connect(f"ws://evil.example:{port}/api/ws", host="127.0.0.1", port=port, proxy=None):
                pass
        assert refused.value.response.status_code == 403


async def test_more_sockets_than_a_process_takes_are_429(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_SOCKETS", 1)
    async with agent_socket(api.url):
        with pytest.raises(InvalidStatus) as refused:
            async with opened(api.url, agent_token()):
                pass
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["Retry-After"] == "1"


async def test_more_sockets_than_an_agent_may_have_are_4029(world: World, nats_url: str) -> None:
    async with running_agent_api(nats_url, max_sockets_per_agent=2) as api, contextlib.AsyncExitStack() as stack:
        for token in (agent_token(), agent_token(), agent_token("other"), agent_token(tenant="acme")):
            socket = await stack.enter_async_context(opened(api.url, token))
            assert await answers(socket)
        async with opened(api.url, agent_token()) as refused:
            assert await close_code(refused) == 4029
            assert "2 connections" in (refused.close_reason or "")
    assert not api.bounds.connections_of(("default", "agent-1"))


async def test_closed_socket_makes_room_for_another(world: World, nats_url: str) -> None:
    async with running_agent_api(nats_url, max_sockets_per_agent=1) as api:
        for _ in range(3):
            async with opened(api.url, agent_token()) as socket:
                assert await answers(socket)
            await until(lambda: not api.bounds.connections_of(("default", "agent-1")))


async def test_what_is_sent_at_once_with_the_handshake_done_is_taken(world: World, api: RunningApi) -> None:
    await world.hold("c1", lambda message: True)
    async with agent_socket(api.url) as agent:
        idents = [await agent.command("c1", "f") for _ in range(100)]
        for ident in idents:
            assert (await agent.answer(ident))["status"] == "success"


async def test_what_is_sent_while_a_key_is_fetched_waits(
    world: World, api: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched, verify = asyncio.Event(), Verifier.verify

    async def slowly(self: Verifier, token: str | None) -> Principal:
        await fetched.wait()
        monkeypatch.undo()
        return await verify(self, token)

    monkeypatch.setattr(Verifier, "verify_now", lambda *_: None)
    monkeypatch.setattr(Verifier, "verify", slowly)
    await world.hold("c1", lambda message: True)
    async with agent_socket(api.url) as agent:
        idents = [await agent.command("c1", "f") for _ in range(100)]
        fetched.set()
        for ident in idents:
            assert (await agent.answer(ident))["status"] == "success"


async def test_strangers_who_cannot_shake_hands_are_no_news(api: RunningApi, caplog: pytest.LogCaptureFixture) -> None:
    address = urlsplit(api.url)
    upgrade = f"GET /api/ws HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    for rest in ("\r\n", "Sec-WebSocket-Key: no\r\n\r\n", "Content-Length: 5\r\n\r\nhello", f"X: {'x' * 9000}\r\n\r\n"):
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write((upgrade + rest).encode())
        async with asyncio.timeout(15):
            assert b" 101 " not in await reader.read()
        writer.close()
    await until(lambda: not api.sockets.upgrades.handler_tasks)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_closed_socket_is_freed_without_a_collection(
    world: World, api: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks: list[None] = []

    def counted(self: LiveSocket) -> None:
        tick(self)
        ticks.append(None)

    tick = LiveSocket.tick
    monkeypatch.setattr(LiveSocket, "tick", counted)

    def alive() -> int:
        kinds = (LiveSocket, AgentSession, BoundedSocket)
        return sum(issubclass(type(each), kinds) for each in gc.get_objects())

    await world.hold("c1", lambda message: True)
    gc.collect()
    before = alive()
    gc.disable()
    try:
        for _ in range(3):
            async with agent_socket(api.url) as agent:
                await agent.send({"type": "capabilities", "id": "w"})
                await agent.call("c1", "f")
        await until(lambda: alive() <= before, 30)
        async with agent_socket(api.url):  # until the clock has looked at it
            await until(lambda: ticks, 30)
        await until(lambda: alive() <= before, 30)
    finally:
        gc.enable()


# --- how long ---


async def test_socket_ends_with_its_token_and_so_do_its_commands(world: World, api: RunningApi) -> None:
    await world.hold("c1", never)
    async with agent_socket(api.url, agent_token(ttl_seconds=2)) as agent:
        await agent.command("c1", "f")
        assert await agent.closed(4) == 4003
        assert agent.close_reason == "token expired"
    await until(lambda: world.received("cancel"))


async def test_refreshed_token_keeps_the_socket_open_and_goes_to_the_gateway(world: World, api: RunningApi) -> None:
    await world.hold("c1", lambda message: True)
    later = agent_token(permissions=["more"])
    async with agent_socket(api.url, agent_token(ttl_seconds=2)) as agent:
        await agent.send({"type": "auth", "id": "a", "token": later})
        await agent.received(type="ack", id="a")
        with pytest.raises(TimeoutError):
            await agent.closed(2.5)
        await agent.call("c1", "f")
        assert world.headers[-1]["Authorization"] == f"Bearer {later}"
        await agent.send({"type": "auth", "token": agent_token(ttl_seconds=1)})
        assert await agent.closed(3) == 4003, "a shorter token counts too"


async def test_refresh_that_is_refused_leaves_the_former_token_in_force(api: RunningApi) -> None:
    async with agent_socket(api.url, agent_token(ttl_seconds=2)) as agent:
        refused = {
            "sub": (agent_token("agent-2"), "permission_denied"),
            "tenant": (agent_token(tenant="acme"), "permission_denied"),
            "role": (app_token("agent-1"), "permission_denied"),
            "expired": (agent_token(ttl_seconds=-1), "unauthenticated"),
            "bad": ("nonsense", "unauthenticated"),
        }
        for ident, (token, code) in refused.items():
            await agent.send({"type": "auth", "id": ident, "token": token})
            assert (await agent.received(type="error", id=ident))["code"] == code
        assert await agent.closed(4) == 4003


# --- frames ---


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        (b'{"type":"ping"}', "send JSON in text frames"),
        ("{", "not valid JSON"),
        ('{"type":"command","id":"a"}', "command"),
        ('{"type":"command","id":"a","command":{"target":""}}', "target"),
        ('{"type":"command","id":"a","command":{"target":"f","parameters":[]}}', "parameters"),
        ('{"type":"command","id":"a","command":{"target":"f"},"timeoutMs":0}', "timeoutMs"),
        ('{"type":"command","id":"a b","command":{"target":"f"}}', "id"),
        ('{"type":"nothing"}', "type"),
    ],
)
async def test_bad_frame_gets_an_error_and_the_connection_goes_on(
    api: RunningApi, frame: str | bytes, sentence: str
) -> None:
    async with agent_socket(api.url) as agent:
        await agent.send(frame)
        error = await agent.received(type="error")
        assert (error["code"], error["retryable"]) == ("invalid_frame", False)
        assert sentence in error["message"]
        await agent.send({"type": "ping"})
        await agent.received(type="pong")


async def test_refused_frame_that_carried_an_id_is_answered_with_it(api: RunningApi) -> None:
    async with agent_socket(api.url) as agent:
        await agent.send({"type": "command", "id": "mine", "command": 7})
        assert (await agent.received(type="error"))["id"] == "mine"


async def test_flood_of_bad_frames_is_1008(api: RunningApi) -> None:
    async with agent_socket(api.url) as agent:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(300):
                await agent.send("{")
        assert await agent.closed() == 1008
        assert len(agent.all_received(type="error")) == 200


async def test_frame_beyond_the_limit_is_1009_and_a_fragmented_one_too(api: RunningApi) -> None:
    for pieces in (["x" * (LIMIT + 1)], ["x" * LIMIT, "x"]):
        async with agent_socket(api.url) as agent:
            with contextlib.suppress(ConnectionClosed):
                await agent.socket.send(pieces)
            assert await agent.closed() == 1009


# --- agents that are slow, silent or gone ---


async def test_stalled_reader_is_cut_off_within_a_bound(
    world: World, api: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread: list[int] = []
    send_text = BoundedSocket.send_text

    def watched(self: BoundedSocket, data: bytes) -> None:
        send_text(self, data)
        unread.append(self.unread_bytes)

    monkeypatch.setattr(BoundedSocket, "send_text", watched)
    await world.hold("c1", lambda message: "x" * 50_000)
    async with opened(api.url, agent_token(), max_queue=1) as socket:
        with contextlib.suppress(ConnectionClosed):
            for number in range(1000):
                await socket.send(json.dumps({"type": "command", "id": str(number), **COMMAND}))
                await asyncio.sleep(0)
        sockets = api.sockets.upgrades
        await until(lambda: not sockets, 10)
    assert 2 * UNREAD < max(unread) < 2 * UNREAD + 2 * LIMIT
    await until(lambda: not api.admission.commands)


async def test_agent_that_reads_gets_what_is_larger_than_the_bound(world: World, nats_url: str) -> None:
    await world.hold("c1", lambda message: "x" * 300_000)
    async with running_agent_api(nats_url, send_buffer_bytes=1024) as api, agent_socket(api.url) as agent:
        assert len((await agent.call("c1", "f"))["result"]) == 300_000


async def test_progress_never_costs_a_slow_agent_its_socket(
    world: World, api: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(message: dict[str, object]) -> str:
        told = {"requestId": message["requestId"], "seq": 1, "progress": 1, "data": "x" * 20_000}
        await world.nats.publish(world.headers[-1]["Agentbridge-Progress"], json.dumps(told).encode())
        return "done"

    await world.hold("c1", work)
    async with agent_socket(api.url) as agent:
        for unread, told in ((0, 1), (UNREAD // 4, 2), (UNREAD - 10_000, 2), (UNREAD, 2)):
            monkeypatch.setattr(BoundedSocket, "unread_bytes", unread)
            assert (await agent.call("c1", "f"))["result"] == "done"
            assert len(agent.all_received(type="progress")) == told


async def test_silent_agent_is_closed(world: World, nats_url: str) -> None:
    """A peer that does the handshake, sends a command and then answers nothing, not even pings."""
    await world.hold("c1", never)
    async with running_agent_api(nats_url, ping_interval_seconds=0.1, ping_timeout_seconds=0.1) as api:
        address = urlsplit(api.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        head = {
            "Host": address.netloc,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(b"0123456789abcdef").decode(),
            "Sec-WebSocket-Version": "13",
            **bearer(agent_token()),
        }
        lines = ["GET /api/ws HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        writer.write("\r\n".join(lines).encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        payload = json.dumps({"type": "command", "id": "a", **COMMAND}).encode()
        writer.write(bytes((0x81, 0x80 | len(payload), 0, 0, 0, 0)) + payload)
        await until(lambda: world.received())
        async with asyncio.timeout(10):
            said = await reader.read()
        assert b"no pong" in said
        writer.close()
        await until(lambda: world.received("cancel"))


async def test_lost_connection_cancels_its_commands(world: World, api: RunningApi) -> None:
    await world.hold("c1", never)
    async with opened(api.url, agent_token()) as socket:
        await socket.send(json.dumps({"type": "command", "id": "a", **COMMAND}))
        await until(lambda: world.received())
        socket.transport.abort()
    await until(lambda: world.received("cancel"))
    await until(lambda: not api.sockets.upgrades)


# --- the end of the process ---


async def test_drain_lets_commands_end_and_closes_with_1012(world: World, nats_url: str) -> None:
    go = asyncio.Event()
    await world.hold("c1", lambda message: go.wait())
    async with running_agent_api(nats_url) as api:
        async with agent_socket(api.url) as busy, agent_socket(api.url) as idle, asyncio.TaskGroup() as tasks:
            ident = await busy.command("c1", "f")
            await until(lambda: world.received())
            draining = tasks.create_task(api.drain())
            assert await idle.closed() == 1012
            assert (await busy.call("c1", "f", id="late"))["code"] == "unavailable"
            go.set()
            assert (await busy.answer(ident))["result"] is True
            assert await busy.closed() == 1012
            await draining
        assert not api.sockets.upgrades.handler_tasks


async def test_command_that_outlasts_the_drain_is_cancelled_and_told_so(world: World, nats_url: str) -> None:
    await world.hold("c1", never)
    async with running_agent_api(nats_url, drain_seconds=0.2) as api, agent_socket(api.url) as agent:
        ident = await agent.command("c1", "f")
        await until(lambda: world.received())
        await api.drain()
        assert (await agent.answer(ident))["error"]["code"] == "cancelled"
        assert await agent.closed() == 1012
    await until(lambda: world.received("cancel"))


async def test_no_token_is_logged(world: World, nats_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("websockets.server", "websockets.client", "uvicorn.error"):
        caplog.set_level(logging.INFO, name)  # the library's debug log is every byte
    async with running_agent_api(nats_url) as api:
        async with agent_socket(api.url) as agent:
            await agent.send({"type": "auth", "token": agent_token("agent-1")})
            await agent.send({"type": "auth", "token": "eyJ.broken"})
            await agent.received(type="error")
        async with connect(f"{ws_url(api.url)}/api/ws?token={agent_token()}", proxy=None) as socket:
            assert await answers(socket)
    assert "eyJ" not in caplog.text
