"""The library as every gateway serves it: to pages of any origin, and once for each version."""

import gzip
from collections.abc import Iterator

import httpx
import pytest
from support.paths import ROOT
from support.processes.child import Process
from support.processes.gateways import shared_gateway
from support.processes.metrics import of_gateway

SCRIPT, MODULE, TYPES, ABOUT = "/agentbridge.js", "/agentbridge.mjs", "/agentbridge.d.mts", "/agentbridge.json"
FOREIGN = {"Origin": "https://evil.example"}


@pytest.fixture(scope="module")
def gateway(shared_nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    settings = {"allowed_origins": "https://app.example"}
    with shared_gateway(tmp_path_factory.mktemp("gateway"), shared_nats_url, **settings) as running:
        yield running


async def get(gateway: Process, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with of_gateway(gateway) as http:
        return await http.request(method, path, headers=named)


@pytest.mark.parametrize("path", [SCRIPT, MODULE, TYPES])
async def test_page_of_any_origin_may_load_the_library(gateway: Process, path: str) -> None:
    answer = await get(gateway, path, **FOREIGN)

    assert answer.status_code == httpx.codes.OK
    assert answer.content == (ROOT / "gateway/static" / path[1:]).read_bytes()
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["Content-Type"].startswith("text/plain" if path == TYPES else "text/javascript")


async def test_browser_that_has_the_library_is_sent_no_second_one(gateway: Process) -> None:
    for coding in ("gzip", "identity"):
        first = await get(gateway, MODULE, Accept_Encoding=coding)
        again = await get(gateway, MODULE, Accept_Encoding=coding, If_None_Match=f'"other", W/{first.headers["ETag"]}')
        other = await get(gateway, MODULE, Accept_Encoding=coding, If_None_Match='"other"')
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
        assert other.status_code == httpx.codes.OK


@pytest.mark.parametrize(
    ("accepted", "zipped"), [("gzip, br", True), ("gzip;q=0", False), ("br, gzip; q=0.5", True), ("", False)]
)
async def test_library_is_gzipped_for_whoever_takes_that(gateway: Process, accepted: str, zipped: bool) -> None:
    answer = await get(gateway, SCRIPT, Accept_Encoding=accepted)
    assert ("Content-Encoding" in answer.headers) == zipped
    assert answer.headers["Vary"] == "Accept-Encoding"
    raw = (ROOT / "gateway/static/agentbridge.js").read_bytes()
    assert answer.content == raw  # httpx unzips
    assert int(answer.headers["Content-Length"]) == (len(gzip.compress(raw, mtime=0)) if zipped else len(raw))


@pytest.mark.parametrize("path", [SCRIPT, MODULE, TYPES, ABOUT])
async def test_head_has_the_head_of_get_and_nothing_else_is_taken(gateway: Process, path: str) -> None:
    head, body, posted = [await get(gateway, path, method) for method in ("HEAD", "GET", "POST")]
    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers, "date": ""} == {**body.headers, "date": ""}
    assert posted.status_code == httpx.codes.METHOD_NOT_ALLOWED


@pytest.mark.parametrize(
    ("headers", "origin"),
    [({"Origin": "https://app.example"}, "allowed"), ({}, "allowed"), (FOREIGN, "refused")],
)
async def test_page_is_told_whether_it_may_connect(gateway: Process, headers: dict[str, str], origin: str) -> None:
    answer = await get(gateway, ABOUT, **headers)
    assert answer.json()["origin"] == origin
    assert answer.json()["version"]
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["Cache-Control"] == "no-store"
