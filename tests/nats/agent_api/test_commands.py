"""`POST /api/command` over real sockets and a real NATS, with gateways that the test plays."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from support.played.agent_api import (
    Fault,
    RunningApi,
    World,
    function,
    http_client,
    listed,
    never,
    running_agent_api,
)
from support.settings import admin_token, agent_token, app_token
from support.wait import until

from protocol.errors import MEANINGS, Code

LIMIT = 64 * 1024


@pytest.fixture
async def api(world: World, nats_url: str) -> AsyncIterator[RunningApi]:
    async with running_agent_api(nats_url, max_message_bytes=LIMIT) as running:
        yield running


def body(target: str = "f", client_id: str | None = "c1", **command: Any) -> dict[str, Any]:
    return {"clientId": client_id, "command": {"target": target, **command}}


async def test_command_is_answered_with_what_the_application_returned(world: World, http: httpx.AsyncClient) -> None:
    await world.hold("c1", lambda message: {"sum": message["parameters"]["a"] + 1})

    response = await http.post("/api/command", json=body(action="run", parameters={"a": 1}, requestId="mine"))

    assert response.status_code == 200
    assert response.json() == {
        "success": True,
        "requestId": "mine",
        "clientId": "c1",
        "result": {"sum": 2},
        "durationMs": 1,
    }
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert "server" not in response.headers


async def test_gateway_gets_the_agents_own_token_and_the_timeout(world: World, http: httpx.AsyncClient) -> None:
    await world.hold("c1", lambda message: None)

    await http.post("/api/command", json={**body(timeoutMs=9000), "timeoutMs": 5000})

    assert world.headers[0]["Authorization"] == http.headers["authorization"]
    assert 4000 < world.received()[0]["timeoutMs"] <= 5000


@pytest.mark.parametrize(("late_ms", "executed"), [(0, True), (2900, True), (3100, False)])
async def test_command_past_its_deadline_is_not_sent(
    world: World, http: httpx.AsyncClient, late_ms: int, executed: bool
) -> None:
    await world.hold("c1", lambda message: 1)
    sent_at = int(time.time() * 1000) - late_ms
    response = await http.post("/api/command", json=body(sentAt=sent_at, timeoutMs=1000))
    assert (response.status_code == httpx.codes.OK) == executed
    assert executed or (response.status_code, response.json()["code"]) == (504, "timeout")
    assert len(world.received()) == executed


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ({"client_id": "other", "command": {"target": "f"}}, "clientId"),
        ({"command": {"target": "f", "arguments": {"title": "x"}}}, "command.parameters"),
        ({"command": {"target": "f", "clientId": "other"}}, "clientId"),
        ({"any": True, "users": "ann", "command": {"target": "f"}}, "match.user"),
    ],
)
async def test_misspelt_field_is_refused_and_nobody_is_asked(
    world: World, http: httpx.AsyncClient, misspelt: dict[str, Any], meant: str
) -> None:
    await world.put("c1", [function("f")])
    await world.hold("c1", lambda message: 1)
    await listed(http, "c1")
    response = await http.post("/api/command", json=misspelt)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert response.json()["message"].endswith(f"did you mean `{meant}`?")
    assert world.received() == []


async def test_error_of_the_gateway_has_the_tables_status(world: World, http: httpx.AsyncClient) -> None:
    def refuse(message: dict[str, Any]) -> None:
        raise Fault(message["target"], "the reason")

    await world.hold("c1", refuse)

    for code, meaning in MEANINGS.items():
        response = await http.post("/api/command", json=body(code.value, requestId="r-1"))
        assert response.status_code == meaning.http_status
        assert response.json() == {
            "error": meaning.phrase,
            "code": code.value,
            "message": "the reason",
            "retryable": meaning.retryable,
            "requestId": "r-1",
        }
        assert ("retry-after" in response.headers) == (code in (Code.RATE_LIMITED, Code.OVERLOADED, Code.UNAVAILABLE))
        assert ("www-authenticate" in response.headers) == (code is Code.UNAUTHENTICATED)
        assert "connection" not in response.headers


async def test_unknown_client_is_not_found_at_once(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(2):
        response = await http.post("/api/command", json=body(client_id="nobody"))
    assert (response.status_code, response.json()["error"]) == (404, "Client not found")


async def test_known_client_without_a_gateway_is_unavailable(world: World, http: httpx.AsyncClient) -> None:
    await world.put("c1")
    await listed(http, "c1")

    response = await http.post("/api/command", json=body())

    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert response.json()["retryable"] is True


async def test_existence_of_an_unreachable_client_is_not_told_to_others(world: World, api: RunningApi) -> None:
    await world.put("c1", principal="ann")
    async with http_client(api) as anybody, http_client(api, agent_token(limits={"users": ["bob"]})) as bob:
        await listed(anybody, "c1")
        response = await bob.post("/api/command", json=body())
    assert (response.status_code, response.json()["code"]) == (404, "client_not_found")


async def test_client_that_offers_the_target_is_found(world: World, http: httpx.AsyncClient) -> None:
    await world.put("c1", [function("other")])
    await world.put("c2", [function("f")])
    await world.hold("c2", lambda message: "found")
    await listed(http, "c1", "c2")

    response = await http.post("/api/command", json=body(client_id=None))

    assert response.json()["clientId"] == "c2"
    assert response.json()["result"] == "found"


async def test_several_candidates_are_named(world: World, http: httpx.AsyncClient) -> None:
    for client_id in ("c3", "c1", "c2"):
        await world.put(client_id, [function("f")])
    await listed(http, "c1", "c2", "c3")

    response = await http.post("/api/command", json=body(client_id=None))

    assert (response.status_code, response.json()["code"]) == (409, "ambiguous_client")
    assert response.json()["details"] == {"clients": ["c1", "c2", "c3"], "total": 3, "users": ["user-1"]}


async def test_target_that_nobody_visible_offers_is_unknown(world: World, api: RunningApi) -> None:
    await world.put("c1", [function("f")], principal="ann")
    await world.put("c2", [function("f", permissions=["secret"])], principal="bob")
    await world.put("c3", [function("f")], tenant="acme")
    async with http_client(api, agent_token(limits={"users": ["bob"]})) as bob:
        await listed(bob, "c2")
        response = await bob.post("/api/command", json=body(client_id=None))
    assert (response.status_code, response.json()["code"]) == (404, "unknown_capability")
    assert "`f`" in response.json()["message"]


async def test_caller_who_goes_away_cancels_the_command(world: World, http: httpx.AsyncClient) -> None:
    await world.hold("c1", never)
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/api/command", json=body(requestId="r-1"), timeout=0.3)
    cancels = await until(lambda: world.received("cancel"))
    [call] = world.received()
    assert call["callerRequestId"] == "r-1"
    assert [cancel["requestId"] for cancel in cancels] == [call["requestId"]]


async def test_command_that_outlasts_its_timeout_is_cancelled(world: World, http: httpx.AsyncClient) -> None:
    await world.hold("c1", never)
    response = await http.post("/api/command", json=body(timeoutMs=50))
    assert (response.status_code, response.json()["code"]) == (504, "timeout")
    assert await until(lambda: world.received("cancel"))


@pytest.mark.parametrize(
    ("token", "status", "code"),
    [
        ("", 401, "unauthenticated"),
        ("nonsense", 401, "unauthenticated"),
        (agent_token(ttl_seconds=-60), 401, "unauthenticated"),
        (agent_token(audience="another"), 401, "unauthenticated"),
        (app_token(), 403, "permission_denied"),
    ],
)
async def test_token_is_required_of_an_agent(api: RunningApi, token: str, status: int, code: str) -> None:
    async with http_client(api, token) as client:
        response = await client.post("/api/command", json=body())
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


async def test_administrator_may_send_commands(world: World, api: RunningApi) -> None:
    await world.hold("c1", lambda message: 1)
    async with http_client(api, admin_token()) as client:
        assert (await client.post("/api/command", json=body())).status_code == 200


async def test_other_scheme_is_not_a_token(http: httpx.AsyncClient) -> None:
    response = await http.post("/api/command", json=body(), headers={"Authorization": "Basic YTpi"})
    assert response.status_code == 401


async def test_other_tenants_client_is_out_of_reach(world: World, api: RunningApi) -> None:
    await world.hold("c1", lambda message: "secret", tenant="acme")
    async with http_client(api) as client:
        assert (await client.post("/api/command", json=body())).json()["code"] == "client_not_found"
    async with http_client(api, agent_token(tenant="acme")) as client:
        assert (await client.post("/api/command", json=body())).json()["result"] == "secret"


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/x-www-form-urlencoded", "application/jsonx"])
async def test_body_must_claim_to_be_json(http: httpx.AsyncClient, content_type: str) -> None:
    response = await http.post("/api/command", content=b'{"command": {}}', headers={"Content-Type": content_type})
    assert (response.status_code, response.json()["code"]) == (415, "invalid_request")


async def test_json_with_a_charset_is_json(world: World, http: httpx.AsyncClient) -> None:
    await world.hold("c1", lambda message: 1)
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    content = b'{"clientId": "c1", "command": {"target": "f"}}'
    assert (await http.post("/api/command", content=content, headers=headers)).status_code == 200


async def test_body_over_the_limit_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.post("/api/command", json=body(parameters={"a": "x" * LIMIT}))
    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")
    assert response.headers["connection"] == "close"


async def test_body_of_unknown_length_is_refused_where_it_exceeds_the_limit(http: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 8192

    headers = {"Content-Type": "application/json"}
    response = await http.post("/api/command", content=endless(), headers=headers)
    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")


async def test_body_in_chunks_is_read(world: World, http: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"clientId": "c1", '
        yield b'"command": {"target": "f"}}'

    await world.hold("c1", lambda message: "whole")
    response = await http.post("/api/command", content=chunks(), headers={"Content-Type": "application/json"})
    assert response.json()["result"] == "whole"


async def test_connection_serves_on_after_refusals(world: World, http: httpx.AsyncClient) -> None:
    await world.hold("c1", lambda message: "fine")
    for content in (b"", b"{", b"[1]", b"\xff", b"[" * 10_000, b'{"command": {"target": "f", "parameters": NaN}}'):
        response = await http.post("/api/command", content=content, headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert (await http.post("/api/command", json=body())).json()["result"] == "fine"


async def test_answer_that_is_not_a_gateways_is_internal(world: World, http: httpx.AsyncClient) -> None:
    await world.hold_plainly("c1", b'{"stream": "x", "seq": 1}')
    response = await http.post("/api/command", json=body())
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert "Traceback" not in response.text
