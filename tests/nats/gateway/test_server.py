"""Who may connect to a gateway, how, and for how long."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from support.nats.audit import statistics
from support.nats.nats_server import NatsServer
from support.played.app import App, Handler, application, socket_of, ws_url
from support.processes.child import Process
from support.processes.gateways import agent, gateway_process, shared_gateway
from support.processes.metrics import figures, of_gateway
from support.settings import SECRET, admin_token, agent_token, app_token
from support.wait import until
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

ORIGIN = "https://app.example.com"
OTHER_SECRET = "another-secret-that-nobody-uses-0123456789"


@pytest.fixture(scope="module")
def gateway(shared_nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with shared_gateway(tmp_path_factory.mktemp("gateway"), shared_nats_url, allowed_origins=ORIGIN) as running:
        yield running
        assert "Traceback" not in running.log
        assert "eyJ" not in running.log, "a token in the log"


@pytest.fixture
async def http(gateway: Process) -> AsyncIterator[httpx.AsyncClient]:
    async with of_gateway(gateway) as client:
        yield client


async def first_frame(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(5):
        frame: dict[str, Any] = json.loads(await socket.recv())
        return frame


async def close_code(socket: ClientConnection) -> int | None:
    async with asyncio.timeout(5):
        await socket.wait_closed()
    return socket.close_code


def url(gateway: Process, path: str = "/ws") -> str:
    return ws_url(gateway.url) + path


# --- ways in ---


@pytest.mark.parametrize("path", ["/ws", "/", "/agent-bridge", "/ws?x=1"])
async def test_connection_frame_is_first_on_every_path(gateway: Process, path: str) -> None:
    async with socket_of(gateway.url, app_token(), path) as socket:
        frame = await first_frame(socket)
    limits = {"maxMessageBytes": 960 * 1024, "pingIntervalSeconds": 25.0}
    assert frame == {"type": "connection", "clientId": frame["clientId"], "protocolVersion": "1", "limits": limits}


async def test_token_in_the_query(gateway: Process) -> None:
    async with connect(url(gateway, f"/ws?token={app_token()}"), proxy=None) as socket:
        assert (await first_frame(socket))["type"] == "connection"
        assert socket.subprotocol is None


@pytest.mark.parametrize("order", [1, -1])
async def test_token_as_a_subprotocol_of_which_only_ours_is_echoed(gateway: Process, order: int) -> None:
    offered = [Subprotocol("agentbridge.v1"), Subprotocol(f"bearer.{app_token()}")][::order]
    async with connect(url(gateway), subprotocols=offered, proxy=None) as socket:
        assert (await first_frame(socket))["type"] == "connection"
        assert socket.subprotocol == "agentbridge.v1"


async def test_token_is_echoed_only_if_nothing_else_of_ours_is_offered(gateway: Process) -> None:
    token, others = Subprotocol(f"bearer.{app_token()}"), [Subprotocol("x"), Subprotocol("bearer.other")]
    async with connect(url(gateway), subprotocols=[token, *others], proxy=None) as socket:
        assert (await first_frame(socket))["type"] == "connection"
        assert socket.subprotocol == token
    for offered in (
        [*others[:1], Subprotocol("agentbridge.v1"), token],
        [token, *others, Subprotocol("agentbridge.v1")],
    ):
        async with connect(url(gateway), subprotocols=offered, proxy=None) as socket:
            assert (await first_frame(socket))["type"] == "connection"
            assert socket.response is not None
            assert socket.subprotocol == "agentbridge.v1"
            assert token not in str(socket.response.headers)


@pytest.mark.parametrize("query", ["", "?token=x"])
async def test_authorization_of_a_proxy_hides_no_token(gateway: Process, query: str) -> None:
    """A proxy that asks for a password may pass its own header on; the application's token stands elsewhere."""
    basic = {"Authorization": "Basic dTpw"}
    token = app_token()
    async with connect(url(gateway, f"/ws?token={token}"), additional_headers=basic, proxy=None) as socket:
        assert (await first_frame(socket))["type"] == "connection"
    offered = [Subprotocol("agentbridge.v1"), Subprotocol(f"bearer.{token}")]
    async with connect(
        url(gateway, f"/ws{query}"), additional_headers=basic, subprotocols=offered, proxy=None
    ) as socket:
        assert (await first_frame(socket))["type"] == "connection"
    both = [("Authorization", "Basic dTpw"), ("Authorization", f"Bearer {token}")]
    async with connect(url(gateway, f"/ws{query}"), additional_headers=both, proxy=None) as socket:
        assert (await first_frame(socket))["type"] == "connection"


async def test_no_token_is_4001_after_accepting(gateway: Process) -> None:
    for target in (url(gateway), url(gateway, "/ws?token=")):
        async with connect(target, proxy=None) as socket:
            assert await close_code(socket) == 4001


def _unsigned() -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'none'})}.{part({'sub': 'u', 'role': 'app', 'aud': 'agentbridge', 'exp': 1e11})}."


@pytest.mark.parametrize(
    "token",
    [
        "nonsense",
        "x" * 8000,
        _unsigned(),
        app_token(ttl_seconds=-1),
        app_token(audience="elsewhere"),
        app_token(tenant="a.b"),
        app_token(sub=""),
        agent_token(),
        admin_token(),
        jwt.encode({"sub": "u", "role": "app", "aud": "agentbridge"}, SECRET, "HS256"),
        jwt.encode({"sub": "u", "role": "app", "aud": "agentbridge", "exp": 10**11}, OTHER_SECRET, "HS256"),
        jwt.encode({"sub": "u", "role": "app", "aud": "agentbridge", "exp": 10**11}, SECRET * 2, "HS512"),
    ],
)
async def test_bad_token_is_4003_after_accepting(gateway: Process, token: str) -> None:
    async with socket_of(gateway.url, token) as socket:
        assert await close_code(socket) == 4003
        assert socket.close_reason


@pytest.mark.parametrize("header", ["Basic dTpw", "Bearer", "Bearer  ", "bearer \t", "\x80"])
async def test_odd_authorization_lets_nobody_in(gateway: Process, header: str) -> None:
    async with connect(url(gateway), additional_headers={"Authorization": header}, proxy=None) as socket:
        assert await close_code(socket) in (4001, 4003)


async def test_two_authorizations_let_nobody_in(gateway: Process) -> None:
    headers = [("Authorization", f"Bearer {app_token()}"), ("Authorization", "Bearer x")]
    async with connect(url(gateway), additional_headers=headers, proxy=None) as socket:
        assert await close_code(socket) == 4003


# --- before the handshake ---


async def test_foreign_origin_is_403_before_the_handshake(gateway: Process) -> None:
    for origins in (["https://evil.example.com"], [ORIGIN, "https://evil.example.com"], ["null"], [f"{ORIGIN}.evil"]):
        headers = [("Origin", origin) for origin in origins] + [("Authorization", f"Bearer {app_token()}")]
        with pytest.raises(InvalidStatus) as caught:
            async with connect(url(gateway), additional_headers=headers, proxy=None):
                pass
        assert caught.value.response.status_code == 403


async def test_allowed_origin_may_connect(gateway: Process) -> None:
    headers = {"Origin": ORIGIN, "Authorization": f"Bearer {app_token()}"}
    async with connect(url(gateway), additional_headers=headers, proxy=None) as socket:
        assert (await first_frame(socket))["type"] == "connection"


@pytest.mark.parametrize("path", ["/nowhere", "/ws/", "/ws/x", "/WS", "//ws", "//[", "/%77s", "/healthz/x"])
async def test_unknown_path_is_404_before_the_handshake(gateway: Process, path: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with socket_of(gateway.url, app_token(), path):
            pass
    assert caught.value.response.status_code == 404


async def test_health_routes_answer_without_a_token(http: httpx.AsyncClient) -> None:
    for path, text in (("/healthz", "ok\n"), ("/readyz", "ready\n"), ("/healthz?x=1", "ok\n")):
        answer = await http.get(path)
        assert (answer.status_code, answer.text) == (200, text)
        assert answer.headers["Cache-Control"] == "no-store"
    assert (await http.get("/nowhere")).status_code == 404
    assert (await http.get("/ws")).status_code == 426


async def test_figures_are_those_of_its_statistics(tmp_path: Path, private_nats: NatsServer) -> None:
    handlers: dict[str, Handler] = {"echo": lambda parameters: parameters}
    async with (
        gateway_process(tmp_path, private_nats.url) as gateway,
        of_gateway(gateway) as http,
        application(gateway.url, handlers) as app,
        application(gateway.url),
        agent(private_nats.url) as caller,
    ):
        assert (await caller.call(app.client_id, "echo"))["status"] == "success"
        found = await figures(http)
        told = await statistics(private_nats.url, "agentbridge-gateway")
    assert found["agentbridge_gateway_sessions"] == 2
    assert found["agentbridge_gateway_commands_answered_total"] == 1
    spelt = {name.removeprefix("agentbridge_gateway_").removesuffix("_total").replace("_", "") for name in found}
    labelled = {name for name in told if ":" in name}
    plain = {name.lower() for name in told.keys() - labelled if not name.startswith("commandDuration")}
    assert labelled
    assert plain <= spelt


async def test_foreign_pages_get_no_figures(http: httpx.AsyncClient) -> None:
    assert (await http.get("/metrics", headers={"Origin": ORIGIN})).status_code == 200
    assert (await http.get("/metrics", headers={"Origin": "https://evil.example.com"})).status_code == 403


# --- how long ---


async def test_socket_ends_with_its_token(gateway: Process) -> None:
    async with application(gateway.url, token=app_token(ttl_seconds=2)) as app:
        assert await app.closed(3) == 4003


async def test_refreshed_token_keeps_the_socket_open(gateway: Process) -> None:
    async with application(gateway.url, token=app_token(ttl_seconds=2)) as app:
        assert (await app.acknowledged({"type": "auth", "token": app_token()}))["type"] == "ack"
        with pytest.raises(TimeoutError):
            await app.closed(2.5)
        assert (await app.acknowledged({"type": "auth", "token": app_token(ttl_seconds=1)}))["type"] == "ack"
        assert await app.closed(3) == 4003, "a shorter token counts too"


async def test_refresh_that_is_refused_leaves_the_former_token_in_force(gateway: Process) -> None:
    async with application(gateway.url, token=app_token(ttl_seconds=3)) as app:
        for token, code in [
            (app_token("user-2"), "permission_denied"),
            (app_token(tenant="elsewhere"), "permission_denied"),
            (agent_token("user-1"), "permission_denied"),
            (app_token(ttl_seconds=-1), "unauthenticated"),
            ("nonsense", "unauthenticated"),
            ("", "unauthenticated"),
        ]:
            assert (await app.acknowledged({"type": "auth", "token": token}))["code"] == code
        assert (await app.acknowledged({"type": "metadata", "metadata": {}}))["type"] == "ack"
        assert await app.closed(4) == 4003


# --- frames ---


async def test_frames_before_the_connection_frame_are_kept(gateway: Process) -> None:
    async with socket_of(gateway.url, app_token()) as socket, asyncio.TaskGroup() as tasks:
        for number in range(10):
            await socket.send(json.dumps({"type": "metadata", "metadata": {"n": number}, "id": f"f{number}"}))
        app = App(socket, {})
        reading = tasks.create_task(app.read(tasks))
        await app.received(type="ack", id="f9")
        await socket.close()
        await reading
    assert [frame["type"] for frame in app.frames] == ["connection", *["ack"] * 10]
    assert [frame["id"] for frame in app.frames[1:]] == [f"f{number}" for number in range(10)]


async def test_fragments_are_one_message(gateway: Process) -> None:
    async with application(gateway.url) as app:
        text = json.dumps({"type": "metadata", "metadata": {"k": "é" * 3}, "id": "f1"}, ensure_ascii=False)
        await app.socket.send([text[:10], "", text[10:]])
        assert (await app.received(id="f1"))["type"] == "ack"


async def test_fragments_may_split_a_character_and_hold_a_ping_between_them(gateway: Process) -> None:
    async with application(gateway.url) as app:
        text = '{"type":"metadata","metadata":{"k":"é"},"id":"f1"}'.encode()
        middle = text.index("é".encode()) + 1
        app.socket.protocol.send_text(text[:middle], fin=False)
        app.socket.protocol.send_ping(b"between")
        app.socket.protocol.send_continuation(text[middle:], fin=True)
        app.socket.send_data()
        assert (await app.received(id="f1"))["type"] == "ack"


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        (b'{"type":"ping"}', "send JSON in text frames"),
        ("{", "not valid JSON"),
        ('{"type":"capability"}', "capabilities"),
        ('{"type":"event","event":""}', "event"),
    ],
)
async def test_bad_frame_gets_an_error_frame_and_the_connection_goes_on(
    gateway: Process, frame: str | bytes, sentence: str
) -> None:
    async with application(gateway.url) as app:
        await app.send(frame)
        error = await app.received(type="error")
        assert error == {"type": "error", "code": "invalid_frame", "message": error["message"]}
        assert sentence in error["message"]
        await app.send({"type": "ping"})
        await app.received(type="pong")


async def test_invalid_utf8_gets_an_error_frame_and_the_connection_goes_on(gateway: Process) -> None:
    async with application(gateway.url) as app:
        app.socket.protocol.send_text(b'{"type":"event","event":"\xff"}')
        app.socket.send_data()
        assert "UTF-8" in (await app.received(type="error"))["message"]
        await app.send({"type": "ping"})
        await app.received(type="pong")


async def test_refused_frame_that_carried_an_id_is_answered_with_it(gateway: Process) -> None:
    async with application(gateway.url) as app:
        for bad in (
            {"type": "capability", "capabilities": "add"},
            {"type": "capability", "capabilities": [{"name": "x", "parameters": {"type": "what"}}]},
            {"type": "metadata"},
            {"type": "event", "event": "x" * 300},
            {"type": "what"},
        ):
            assert (await app.acknowledged(bad))["code"] == "invalid_frame"


async def test_flood_of_bad_frames_is_1008(gateway: Process) -> None:
    async with application(gateway.url) as app:
        try:
            for _ in range(300):
                await app.send("{")
        except ConnectionClosed:
            pass
        assert await app.closed() == 1008
        assert len(app.all_received(type="error")) == 200


@pytest.mark.parametrize(("count", "message"), [(100, b'{"type":"ping"}'), (5, b"x" * 500_000)])
async def test_what_comes_before_the_connection_frame_waits_for_it(
    private_nats: NatsServer, tmp_path: Path, count: int, message: bytes
) -> None:
    async with gateway_process(tmp_path, private_nats.url) as gateway:
        private_nats.freeze()  # no session can begin
        async with connect(url(gateway, f"/ws?token={app_token()}"), proxy=None) as socket:
            for _ in range(count):
                socket.protocol.send_text(message)
            socket.send_data()
            private_nats.thaw()
            assert (await first_frame(socket))["type"] == "connection"
            answers = [json.loads(await socket.recv()) for _ in range(count)]
    assert {answer["type"] for answer in answers} == {"pong" if count == 100 else "error"}


async def test_debug_log_holds_no_token(shared_nats_url: str, tmp_path: Path) -> None:
    async with gateway_process(tmp_path, shared_nats_url, log_level="debug") as gateway:
        async with connect(url(gateway, f"/ws?token={app_token()}"), proxy=None) as socket:
            await first_frame(socket)
        async with socket_of(gateway.url, app_token()) as socket:
            await first_frame(socket)
        await until(lambda: gateway.log.count("disconnected") == 2)
        assert "eyJ" not in gateway.log


async def test_without_authentication_anybody_may_connect(shared_nats_url: str, tmp_path: Path) -> None:
    settings = {"auth": "off", "jwt_secret": None}
    async with (
        gateway_process(tmp_path, shared_nats_url, **settings) as gateway,
        connect(url(gateway), proxy=None) as socket,
    ):
        assert (await first_frame(socket))["type"] == "connection"


async def test_without_authentication_a_foreign_host_is_403_before_the_handshake(
    shared_nats_url: str, tmp_path: Path
) -> None:
    """A page whose host name was rebound to 127.0.0.1 must not speak as an application, whatever its origin says."""
    settings = {"auth": "off", "jwt_secret": None, "allowed_origins": "*"}
    async with gateway_process(tmp_path, shared_nats_url, **settings) as gateway:
        port = gateway.url.removesuffix("/ws").rpartition(":")[2]
        headers = {"Origin": f"http://evil.example:{port}"}
        with pytest.raises(InvalidStatus) as refused:
            async with connect(
                f"ws://evil.example:{port}/ws", host="127.0.0.1", port=int(port), additional_headers=headers, proxy=None
            ):
                pass
        assert refused.value.response.status_code == 403
        async with of_gateway(gateway) as http:
            assert (await http.get("/metrics", headers={"Host": f"evil.example:{port}"})).status_code == 403
        async with connect(f"ws://localhost:{port}/ws", host="127.0.0.1", port=int(port), proxy=None) as socket:
            assert (await first_frame(socket))["type"] == "connection"
