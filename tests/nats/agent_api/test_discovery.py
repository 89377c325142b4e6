"""Discovery, disconnecting, health, documentation and cross-origin rules of the agent API, over real sockets."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from support.nats.audit import statistics
from support.played.agent_api import (
    GATEWAY,
    RunningApi,
    World,
    function,
    http_client,
    listed,
    running_agent_api,
    world_at,
)
from support.processes.browser import open_page
from support.processes.metrics import figures
from support.settings import admin_token, agent_token, app_token
from support.wait import until

from protocol.subjects import CLIENTS_BUCKET

ORIGIN = "https://app.example.com"


@pytest.fixture
async def api(world: World, nats_url: str) -> AsyncIterator[RunningApi]:
    async with running_agent_api(nats_url, allowed_origins=ORIGIN) as running:
        yield running


async def test_capabilities_are_listed_as_they_were_sent(world: World, http: httpx.AsyncClient) -> None:
    add = function("add", parameters={"type": "object"}, vendor={"kept": 1.50})
    await world.put("c1", [add])
    await world.put("c2")
    await listed(http, "c1", "c2")
    assert (await http.get("/api/capabilities")).json() == {"c1": [add], "c2": []}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"c1", "c2", "c3"}),
        ("clientId=c2", {"c2"}),
        ("clientId=nobody", set()),
        ("name=add", {"c1", "c2"}),
        ("user=ann", {"c1", "c3"}),
        ("app=todo", {"c2", "c3"}),
        ("metadata.room=a%20b", {"c1"}),
        ("metadata.floor=3", {"c3"}),
        ("name=add&user=ann", {"c1"}),
        ("after=c1", {"c2", "c3"}),
    ],
)
async def test_filters_narrow(world: World, http: httpx.AsyncClient, query: str, expected: set[str]) -> None:
    await world.put("c1", [function("add")], principal="ann", metadata={"room": "a b"})
    await world.put("c2", [function("add")], principal="bob", app={"name": "todo"})
    await world.put("c3", [function("remove")], principal="ann", app={"name": "todo"}, metadata={"floor": 3})
    await listed(http, "c1", "c2", "c3")

    assert set((await http.get(f"/api/capabilities?{query}")).json()) == expected
    assert {record["clientId"] for record in (await http.get(f"/api/clients?{query}")).json()} == expected


async def test_labels_choose_single_capabilities_page_by_page(world: World, http: httpx.AsyncClient) -> None:
    pay = function("pay", tags=["cart"], authLevel="user")
    form = {"type": "component", "id": "f", "componentType": "form", "path": "/cart", "tags": ["cart"]}
    await world.put("c1", [pay, form])
    await world.put("c2", [function("other", tags=["home"])])
    await world.put("c3", [form, function("other")])
    await listed(http, "c1", "c2", "c3")

    async def offered(query: str) -> dict[str, list[dict[str, Any]]]:
        return dict((await http.get(f"/api/capabilities?{query}")).json())

    assert await offered("tags=cart,none") == {"c1": [pay, form], "c3": [form]}
    assert await offered("authLevel=user") == {"c1": [pay]}
    assert await offered("tags=cart&componentType=form&path=/ca&user=ann") == await offered("path=/cart&user=ann")
    first = await http.get("/api/capabilities?tags=cart&limit=1")
    second = await http.get(first.links["next"]["url"])
    assert (first.json(), second.json()) == ({"c1": [pay, form]}, {"c3": [form]})
    records = (await http.get("/api/clients?authLevel=user")).json()
    assert [record["capabilities"] for record in records] == [[pay, form]]


@pytest.mark.parametrize("path", ["/api/capabilities", "/api/clients"])
async def test_pages_lead_to_one_another(world: World, http: httpx.AsyncClient, path: str) -> None:
    ids = [f"c{number}" for number in range(5)]
    for client_id in ids:
        await world.put(client_id, principal="ann b")
    await listed(http, *ids)

    pages, url = [], f"{path}?limit=2&user=ann%20b"
    while url:
        response = await http.get(url)
        pages.append(_ids(response.json()))
        url = response.links["next"]["url"] if "next" in response.links else ""

    assert pages == [["c0", "c1"], ["c2", "c3"], ["c4"]]


async def test_wrong_query_is_refused_with_the_parameter_named(http: httpx.AsyncClient) -> None:
    limits = ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=", "limit=1.5", f"limit={'9' * 5000}"]
    for query in ("unknown=1", "metadata.=1", "user=a&user=b", *limits):
        response = await http.get(f"/api/capabilities?{query}")
        assert (response.status_code, response.json()["code"]) == (400, "invalid_request"), query
        assert query.partition("=")[0] in response.json()["message"]


async def test_unchanged_list_is_not_sent_again(world: World, http: httpx.AsyncClient) -> None:
    await world.put("c1", [function("add")])
    await listed(http, "c1")
    first = await http.get("/api/capabilities")

    again = await http.get("/api/capabilities", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]

    await world.put("c1", [function("add"), function("more")])
    await until(lambda: _offers(http, "c1", 2))
    changed = await http.get("/api/capabilities", headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200


async def test_agents_with_different_sight_have_different_tags(world: World, api: RunningApi) -> None:
    await world.put("c1", principal="ann")
    async with http_client(api) as anybody, http_client(api, agent_token(limits={"users": ["bob"]})) as bob:
        await listed(anybody, "c1")
        seen = await anybody.get("/api/capabilities")
        response = await bob.get("/api/capabilities", headers={"If-None-Match": seen.headers["etag"]})
    assert (response.status_code, response.json()) == (200, {})
    assert "authorization" in response.headers["vary"].lower()


@pytest.mark.parametrize(
    ("claims", "seen"),
    [
        ({"limits": {"users": ["ann"]}}, ["c1"]),
        ({"limits": {"apps": ["todo"]}}, ["c2"]),
        ({"limits": {"clients": ["c2"], "users": ["ann"]}}, []),
        ({"tenant": "acme"}, ["c3"]),
        ({"tenant": "empty"}, []),
        ({}, ["c1", "c2"]),
    ],
)
async def test_agent_sees_what_its_token_allows_on_every_route(
    world: World, api: RunningApi, claims: dict[str, Any], seen: list[str]
) -> None:
    await world.put("c1", principal="ann")
    await world.put("c2", principal="bob", app={"name": "todo"})
    await world.put("c3", principal="ann", tenant="acme")
    async with http_client(api) as anybody, http_client(api, agent_token(**claims)) as agent:
        await listed(anybody, "c1", "c2")
        await listed(agent, *seen)
        assert _ids((await agent.get("/api/clients")).json()) == seen
        for client_id in ("c1", "c2", "c3"):
            status = (await agent.get(f"/api/clients/{client_id}")).status_code
            assert status == (200 if client_id in seen else 404)


async def test_client_is_shown_with_its_record(world: World, http: httpx.AsyncClient) -> None:
    await world.put("c1", [function("add")], principal="ann", app={"name": "todo"})
    await listed(http, "c1")
    assert (await http.get("/api/clients/c1")).json() == {
        "clientId": "c1",
        "tenant": "default",
        "gatewayId": GATEWAY,
        "principal": "ann",
        "user": "ann",
        "app": {"name": "todo"},
        "metadata": {},
        "capabilities": [function("add")],
        "revision": 1,
        "connectedAt": "2026-01-01T00:00:00.000Z",
        "focusedAt": None,
        "state": "active",
        "refused": [],
    }


async def test_client_that_left_is_gone(world: World, http: httpx.AsyncClient) -> None:
    await world.put("c1")
    await listed(http, "c1")
    await world.remove("c1")
    await listed(http)
    response = await http.get("/api/clients/c1")
    assert (response.status_code, response.json()["error"]) == (404, "Client not found")


async def test_every_route_below_api_needs_an_agents_token(api: RunningApi) -> None:
    routes = [("GET", "/api/capabilities"), ("GET", "/api/clients")]
    routes += [(method, "/api/clients/c1") for method in ("GET", "DELETE")]
    refused = [("", 401), ("nonsense", 401), (app_token(), 403)]
    for token, status in refused:
        async with http_client(api, token) as client:
            for method, path in routes:
                response = await client.request(method, path)
                assert response.status_code == status
                assert response.json()["code"] == ("permission_denied" if status == 403 else "unauthenticated")


async def test_administrator_disconnects_a_client(world: World, api: RunningApi) -> None:
    await world.put("c1")
    await world.serve_disconnect(lambda request: {"disconnected": True})
    token = admin_token()
    async with http_client(api, token) as admin:
        await listed(admin, "c1")
        response = await admin.delete("/api/clients/c1")
    assert (response.status_code, response.content) == (204, b"")
    assert world.messages == [{"tenant": "default", "clientId": "c1"}]
    assert world.headers[0]["Authorization"] == f"Bearer {token}"


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        ({"disconnected": False}, 404, "client_not_found"),
        (
            {"status": "error", "error": {"code": "client_not_found", "message": "m", "retryable": False}},
            404,
            "client_not_found",
        ),
        ({"status": "error", "error": {"code": "internal", "message": "m", "retryable": False}}, 500, "internal"),
        ({"strange": 1}, 500, "internal"),
    ],
)
async def test_gateways_refusal_to_disconnect_is_told(
    world: World, api: RunningApi, answer: dict[str, Any], status: int, code: str
) -> None:
    await world.put("c1")
    await world.serve_disconnect(lambda request: answer)
    async with http_client(api, admin_token()) as admin:
        await listed(admin, "c1")
        response = await admin.delete("/api/clients/c1")
    assert (response.status_code, response.json()["code"]) == (status, code)


async def test_disconnect_with_the_gateway_gone_is_unavailable(world: World, api: RunningApi) -> None:
    await world.put("c1")
    async with http_client(api, admin_token()) as admin:
        await listed(admin, "c1")
        assert (await admin.delete("/api/clients/c1")).json()["code"] == "unavailable"
        assert (await admin.delete("/api/clients/nobody")).json()["code"] == "client_not_found"


async def test_agent_may_not_disconnect(world: World, http: httpx.AsyncClient) -> None:
    await world.put("c1")
    await listed(http, "c1")
    assert (await http.delete("/api/clients/c1")).status_code == 403


async def test_what_is_not_there_is_refused_in_our_words(http: httpx.AsyncClient) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/api/nothing", 404),
        ("GET", "/api/command", 405),
        ("POST", "/api/command/", 404),
        ("POST", "/api/clients", 405),
        ("GET", "/docs/assets/nothing.js", 404),
        ("GET", "/docs/assets/..%2f..%2fcore.py", 404),
    ):
        response = await http.request(method, path)
        assert (response.status_code, response.json()["code"]) == (status, "invalid_request"), path
        assert ("allow" in response.headers) == (status == 405)


async def test_web_page_of_an_allowed_origin_may_call(world: World, http: httpx.AsyncClient) -> None:
    await world.hold("c1", lambda message: 1)
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = await http.options("/api/command", headers={"Origin": ORIGIN, **asking})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-credentials" not in preflight.headers

    called = {"clientId": "c1", "command": {"target": "f"}}
    for response in (
        await http.post("/api/command", json=called, headers={"Origin": ORIGIN}),
        await http.get("/api/capabilities", headers={"Origin": ORIGIN}),
        await http.get("/nothing", headers={"Origin": ORIGIN}),
    ):
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "ETag" in response.headers["access-control-expose-headers"]


async def test_web_page_of_another_origin_is_shown_nothing(http: httpx.AsyncClient) -> None:
    origin = {"Origin": "https://evil.example.com"}
    preflight = await http.options("/api/command", headers={**origin, "Access-Control-Request-Method": "POST"})
    assert preflight.status_code == 400
    for response in (preflight, await http.get("/api/capabilities", headers=origin)):
        assert "access-control-allow-origin" not in response.headers


async def test_documentation_needs_no_other_host(http: httpx.AsyncClient) -> None:
    page = await http.get("/docs")
    assert page.status_code == 200
    assert "http" not in page.text.replace("http-equiv", "")
    for path in ("docs/start.js", "docs/assets/swagger-ui-bundle.js", "docs/assets/swagger-ui.css"):
        assert path in page.text
        assert (await http.get(f"/{path}")).status_code == 200


@pytest.mark.browser
async def test_documentation_is_shown_by_a_browser(api: RunningApi) -> None:
    async with open_page(f"{api.url}/docs") as page:
        await page.locator(".opblock-summary-path", has_text="/api/command").wait_for()
        groups = page.locator(".opblock-tag a")
        assert await groups.all_text_contents() == ["Commands", "Clients", "Agents", "Events", "Audit", "Process"]
        await page.locator(".opblock-delete .opblock-summary-path", has_text="clients").click()
        await page.locator(".response-col_description", has_text="no connected client with this id").wait_for()
        loaded = await page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
        assert loaded
        assert all(url.startswith(api.url) for url in loaded)


async def test_openapi_document_is_served_without_a_token(api: RunningApi) -> None:
    async with http_client(api, "") as stranger:
        assert (await stranger.get("/openapi.json")).json()["openapi"].startswith("3.1")


async def test_process_is_announced_as_a_micro_service(world: World, api: RunningApi) -> None:
    reply = await world.nats.request("$SRV.PING.agentbridge-agent-api", b"", timeout=2)
    assert b'"name":"agentbridge-agent-api"' in reply.data


async def test_figures_are_those_of_its_statistics(api: RunningApi, nats_url: str) -> None:
    async with http_client(api, "") as stranger:
        assert (await stranger.post("/api/command", json={"command": {"target": "f"}})).status_code == 401
        found = await figures(stranger)
    told = await statistics(nats_url, "agentbridge-agent-api")
    expected = {
        "agentbridge_agent_api_unauthenticated_total": told["unauthenticated"],
        "agentbridge_agent_api_audit_stored_total": told["auditStored"],
        "agentbridge_agent_api_audit_failed_total": told["auditFailed"],
        "agentbridge_agent_api_audit_waiting": told["auditWaiting"],
    }
    assert expected.items() <= found.items()
    assert told["unauthenticated"] == 1


@pytest.mark.parametrize("path", ["/%6detrics", "/metric%73", "/metrics/", "//metrics", "/METRICS"])
async def test_figures_are_at_no_path_that_a_proxy_may_take_for_another(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "invalid_request")


async def test_ready_once_the_list_of_clients_was_read_and_for_good(nats_url: str) -> None:
    async with (
        world_at(nats_url, bucket=False) as world,
        running_agent_api(nats_url) as api,
        http_client(api) as http,
    ):
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        unready = await http.get("/readyz")
        assert (unready.status_code, unready.json()["code"]) == (503, "unavailable")
        assert unready.json()["details"] == {"missing": ["the list of clients has not been read yet"]}
        assert (await http.get("/api/capabilities")).status_code == 503
        await world.hold("c1", lambda message: "without a registry")
        called = await http.post("/api/command", json={"clientId": "c1", "command": {"target": "f"}})
        assert called.json()["result"] == "without a registry"

        await world.make_bucket()
        await world.put("c1")
        await until(lambda: _is_ready(http))
        await listed(http, "c1")

        await world.nats.jetstream().delete_key_value(CLIENTS_BUCKET)
        assert await _is_ready(http)


def _ids(listing: dict[str, Any] | list[dict[str, Any]]) -> list[str]:
    return list(listing) if isinstance(listing, dict) else [record["clientId"] for record in listing]


async def _offers(http: httpx.AsyncClient, client_id: str, count: int) -> bool:
    return len((await http.get("/api/capabilities")).json()[client_id]) == count


async def _is_ready(http: httpx.AsyncClient) -> bool:
    return (await http.get("/readyz")).status_code == 200
