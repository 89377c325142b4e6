"""Requests at a gateway's port that open no WebSocket: whatever comes gets an answer, and its sender reads it."""

import asyncio
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest
from support.processes.child import Process
from support.processes.gateways import shared_gateway
from support.processes.metrics import of_gateway

LARGE = 2_000_000


class Answer(NamedTuple):
    """What stands in an answer's head, and all that follows it."""

    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def gateway(shared_nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with shared_gateway(tmp_path_factory.mktemp("gateway"), shared_nats_url) as running:
        yield running
        assert "Traceback" not in running.log


async def exchange(gateway: Process, head: str, body: bytes = b"", *, leave: bool = False) -> bytes:
    """Send a request and return all that comes; with `leave`, stop writing before that."""
    address = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        async with asyncio.timeout(5):
            writer.write(head.replace("\n", "\r\n").encode() + body)
            await writer.drain()
            if leave:
                writer.write_eof()
            return await reader.read()
    finally:
        writer.close()


async def answer_to(gateway: Process, head: str, body: bytes = b"") -> Answer:
    first, _, rest = (await exchange(gateway, head, body)).partition(b"\r\n\r\n")
    status_line, *lines = first.decode().split("\r\n")
    return Answer(int(status_line.split()[1]), dict(line.lower().split(": ", 1) for line in lines), rest)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(
    ("path", "status"), [("/ws", 405), ("/", 405), ("/healthz", 405), ("/metrics", 405), ("/nowhere", 404)]
)
async def test_post_without_a_body_is_not_allowed(gateway: Process, version: str, path: str, status: int) -> None:
    answer = await answer_to(gateway, f"POST {path} HTTP/{version}\nHost: x\nContent-Length: 0\n\n")
    assert (answer.status, answer.headers.get("allow")) == (status, "get, head" if status == 405 else None)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"])
@pytest.mark.parametrize(
    ("framing", "body"),
    [
        ("Content-Length: 2", b"{}"),
        ("Transfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n"),
        ("Content-Length: 9000\nUpgrade: websocket\nConnection: Upgrade", b"{}"),
        (f"Content-Length: {LARGE}", b"x" * LARGE),
    ],
)
async def test_request_with_a_body_is_answered(gateway: Process, method: str, framing: str, body: bytes) -> None:
    answer = await answer_to(gateway, f"{method} /ws HTTP/1.1\nHost: x\n{framing}\n\n", body)
    assert (answer.status, answer.headers["allow"], answer.headers["connection"]) == (405, "get, head", "close")
    assert answer.body == b"connect a WebSocket: this takes GET only\n"


async def test_caller_that_writes_a_large_body_first_reads_the_answer(gateway: Process) -> None:
    async with of_gateway(gateway) as http:
        for path in ("/ws", "/healthz"):
            answer = await http.post(path, content=b"x" * 10 * LARGE)
            assert answer.status_code == httpx.codes.METHOD_NOT_ALLOWED


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("GET /ws HTTP/1.1\nHost: x\nContent-Length: 2\n\n{}", 400),
        ("GET /ws HTTP/1.1\nno header\n\n", 400),
        ("GET /ws HTTP/3.7\n\n", 400),
        ("GET\n\n", 405),
        ("PRI * HTTP/2.0\n\nSM\n\n", 405),
        ("\x16\x03\x01\x02\n", 405),
        (f"GET /{'x' * 9000} HTTP/1.1\n\n", 414),
        (f"GET / HTTP/1.1\n{'x' * 9000}: y\n\n", 431),
    ],
)
async def test_request_that_cannot_be_read_is_answered(gateway: Process, request_: str, status: int) -> None:
    assert (await answer_to(gateway, request_)).status == status


@pytest.mark.parametrize(("method", "status"), [("GET", 400), ("POST", 405)])
async def test_request_whose_lines_end_as_in_a_text_is_answered(gateway: Process, method: str, status: int) -> None:
    answer = await exchange(gateway, "", f"{method} /healthz HTTP/1.1\nHost: x\n\n".encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("sent", ["", "GET /ws HT", "POST /ws HTTP/1.1\nHost: x\n"])
async def test_request_that_breaks_off_is_not_answered(gateway: Process, sent: str) -> None:
    assert await exchange(gateway, sent, leave=True) == b""


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/ws", "/nowhere"])
async def test_head_is_answered_with_the_head_of_get(gateway: Process, path: str) -> None:
    head, get = [await answer_to(gateway, f"{method} {path} HTTP/1.1\nHost: x\n\n") for method in ("HEAD", "GET")]
    assert (head.status, head.body) == (get.status, b"")
    assert head.headers.keys() >= get.headers.keys() - {"date"}
    if path != "/ws":  # the library's own sentence
        assert head.headers["content-length"] == get.headers["content-length"]
