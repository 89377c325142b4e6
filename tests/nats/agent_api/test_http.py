"""What callers of every kind really send: headers, methods and bodies that are not as our own clients write them."""

import asyncio
import codecs
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from support.nats.events import make_stream
from support.nats.stores import make_store
from support.played.agent_api import RunningApi, World, function, http_client, listed, running_agent_api, world_at
from support.played.app import ws_url
from support.processes.browser import open_page
from support.settings import admin_token, agent_token
from websockets.asyncio.client import connect

from agent_api.events import audit_feed, hub
from protocol.runtime.streams.stores import audit_of

ROUTES = [
    ("POST", "/api/command"),
    ("GET", "/api/capabilities"),
    ("GET", "/api/clients"),
    ("GET", "/api/clients/c1"),
    ("DELETE", "/api/clients/c1"),
    ("GET", "/api/ws"),
    ("GET", "/agent-bridge"),
    ("GET", "/api/events"),
    ("GET", "/api/audit"),
]


@pytest.fixture
async def world(nats_url: str) -> AsyncIterator[World]:
    async with world_at(nats_url) as surroundings:
        await make_stream(surroundings.nats)
        await make_store(surroundings.nats, audit_of("default"))
        yield surroundings


@pytest.fixture
async def api(world: World, nats_url: str) -> AsyncIterator[RunningApi]:
    async with running_agent_api(nats_url, allowed_origins="null") as running:
        yield running


# --- tokens ---


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_two_tokens_are_refused_on_every_route(api: RunningApi, method: str, path: str) -> None:
    good = f"Bearer {agent_token()}"
    for others in ([good], ["Bearer x"]):
        headers = [("Authorization", value) for value in (good, *others)]
        async with httpx.AsyncClient(base_url=api.url, headers=headers, trust_env=False) as client:
            refused = await client.request(method, path)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
        assert refused.json()["message"] == "there are two Authorization headers with a token; send one"
        assert refused.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_password_of_a_proxy_is_passed_over_on_every_route(api: RunningApi, method: str, path: str) -> None:
    async with httpx.AsyncClient(base_url=api.url, trust_env=False) as client:
        headers = {"Authorization": "Basic dTpw"}
        refused = await client.request(method, path, headers=headers)
        assert (refused.status_code, refused.json()["message"]) == (401, "send a token: Authorization: Bearer <token>")
        both = [("Authorization", "Basic dTpw"), ("Authorization", f"Bearer {agent_token()}")]
        async with client.stream(method, path, headers=both) as answer:
            assert answer.status_code != 401


# --- methods ---


READABLE = [
    *(path for method, path in ROUTES if method == "GET"),
    "/healthz",
    "/readyz",
    "/metrics",
    "/docs",
    "/docs/start.js",
    "/docs/assets/swagger-ui.css",
    "/openapi.json",
    "/nothing",
    "/api/clients/nobody",
    "/api/command",
    "/api/events?since=nonsense",
    "/api/clients?limit=0",
]


@pytest.mark.parametrize("path", READABLE)
async def test_head_is_answered_with_the_head_of_get(world: World, api: RunningApi, path: str) -> None:
    await world.put("c1", [function("f")])
    async with http_client(api, admin_token()) as client:
        await listed(client, "c1")
        async with client.stream("GET", path) as get:
            pass
        head = await client.request("HEAD", path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        if path != "/metrics":  # they count this very request
            assert head.headers.get("content-length") == get.headers.get("content-length")
        assert head.headers.keys() == get.headers.keys() - {"transfer-encoding"}
        assert (await client.get("/healthz")).status_code == 200, "on the same connection"


async def test_head_knows_what_is_unchanged(http: httpx.AsyncClient) -> None:
    tag = (await http.get("/api/clients")).headers["etag"]
    unchanged = await http.request("HEAD", "/api/clients", headers={"If-None-Match": tag})
    assert (unchanged.status_code, unchanged.headers["etag"]) == (304, tag)


async def test_head_of_streams_leaves_no_reader_behind(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_READERS_PER_PRINCIPAL", 3)
    monkeypatch.setattr(audit_feed, "MAX_FOLLOWERS_PER_TENANT", 3)
    async with http_client(api, admin_token()) as client:
        for path in ("/api/events", "/api/audit") * 5:
            head = await client.request("HEAD", path, headers={"Accept": "text/event-stream"})
            assert head.status_code == 200
            assert head.headers["content-type"] == "text/event-stream; charset=utf-8"


# --- versions ---


async def raw(api: RunningApi, request: str, body: bytes = b"", until: bytes = b"") -> bytes:
    """Return all that comes, up to the connection's end, or to a part of it."""
    address = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        async with asyncio.timeout(5):
            writer.write(request.replace("\n", "\r\n").encode() + body)
            return await (reader.readuntil(until) if until else reader.read())
    finally:
        writer.close()


HELD = "Content-Type: application/json\nAuthorization: Bearer "


async def test_stream_for_an_old_caller_has_no_chunks_and_ends_its_connection(world: World, api: RunningApi) -> None:
    await world.hold("c1", lambda message: {"done": True})
    body = b'{"clientId": "c1", "command": {"target": "f"}}'
    head = (
        f"POST /api/command HTTP/1.0\nAccept: text/event-stream\n{HELD}{agent_token()}\nContent-Length: {len(body)}\n"
    )
    answer = await raw(api, head + "Connection: keep-alive\nExpect: 100-continue\n\n", body)
    first, _, rest = answer.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in first
    assert b"content-length" not in first
    assert b"connection: close" in first
    assert rest.startswith(b"event: response\ndata: {")
    assert rest.endswith(b"}\n\n")


async def test_events_for_an_old_caller_have_no_chunks(api: RunningApi) -> None:
    request = f"GET /api/events HTTP/1.0\nAuthorization: Bearer {agent_token()}\n\n"
    first, _, rest = (await raw(api, request, until=b"\n\n")).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in first
    assert rest.startswith(b"retry: ")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_whole_answer_for_an_old_caller_has_its_length(api: RunningApi, method: str) -> None:
    answer = await raw(api, f"{method} /healthz HTTP/1.0\nConnection: keep-alive\n\n")
    first, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-length: 15" in first
    assert b"connection: close" in first
    assert body == (b'{"status":"ok"}' if method == "GET" else b"")


# --- bodies ---


async def test_byte_order_mark_is_skipped(world: World, http: httpx.AsyncClient) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 2):
            yield body[at : at + 2]

    await world.hold("c1", lambda message: 1)
    body = codecs.BOM_UTF8 + b'{"clientId": "c1", "command": {"target": "f"}}'
    for content in (body, parts()):
        answer = await http.post("/api/command", content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["success"]) == (200, True)
    twice = await http.post(
        "/api/command", content=codecs.BOM_UTF8 + body, headers={"Content-Type": "application/json"}
    )
    assert (twice.status_code, twice.json()["message"]) == (400, "the message is not valid JSON")


@pytest.mark.parametrize("body", ['"timeoutMs": 1500.0', '"timeoutMs": 1.5e3', '"timeoutMs": null'])
async def test_whole_number_may_be_written_as_a_float(world: World, http: httpx.AsyncClient, body: str) -> None:
    await world.hold("c1", lambda message: message["timeoutMs"])
    content = f'{{"clientId": "c1", {body}, "command": {{"target": "f", "timeoutMs": 1500.0}}}}'
    answer = await http.post("/api/command", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, type(answer.json()["result"])) == (200, int)
    assert 1000 < answer.json()["result"] <= 1500


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate", "gzip, identity"])
async def test_compressed_body_is_refused_with_what_is_accepted(http: httpx.AsyncClient, encoding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    content = gzip.compress(b'{"clientId": "c1", "command": {"target": "f"}}')
    refused = await http.post("/api/command", content=content, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (415, "invalid_request")
    assert refused.json()["message"] == "send the body as it is: no Content-Encoding is accepted"
    assert refused.headers["accept-encoding"] == "identity"


async def test_body_that_says_that_it_is_not_compressed_is_read(world: World, http: httpx.AsyncClient) -> None:
    await world.hold("c1", lambda message: 1)
    headers = {"Content-Type": "application/json", "Content-Encoding": "Identity"}
    answer = await http.post("/api/command", content=b'{"clientId":"c1","command":{"target":"f"}}', headers=headers)
    assert answer.status_code == 200


# --- pages ---


@pytest.mark.browser
async def test_page_without_an_origin_of_its_own_calls_if_it_is_named(api: RunningApi, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("<!DOCTYPE html><title>an agent</title>")
    calling = """([url, token]) => fetch(url + '/api/capabilities', {headers: {Authorization: `Bearer ${token}`}})
      .then((answer) => answer.json())"""
    opening = """([url, token]) => new Promise((done) => {
      const socket = new WebSocket(url, [`bearer.${token}`])
      socket.onopen = () => socket.send('{"type":"ping"}')
      socket.onmessage = ({data}) => done(JSON.parse(data).type)
      socket.onclose = ({code}) => done(code)
    })"""
    async with open_page(file.as_uri()) as page:
        assert await page.evaluate(calling, [api.url, agent_token()]) == {}
        assert await page.evaluate(opening, [f"{ws_url(api.url)}/api/ws", agent_token()]) == "pong"


async def test_password_of_a_proxy_hides_no_token_of_a_socket(api: RunningApi) -> None:
    url = f"{ws_url(api.url)}/api/ws?token={agent_token()}"
    async with connect(url, additional_headers={"Authorization": "Basic dTpw"}, proxy=None) as socket:
        await socket.send('{"type":"ping"}')
        async with asyncio.timeout(5):
            assert await socket.recv() == '{"type":"pong"}'
