"""`/mcp` on the wire: who comes in, what is refused in each era, streams and their ends, cancelling by name."""

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import nats
import pytest
from support.mcp_client import mcp_client, text_of
from support.played.agent_api import Fault, RunningApi, World, function, never, running_agent_api, world_at
from support.settings import agent_token, app_token, bearer
from support.wait import until

from agent_api.commands.admission import MAX_BYTES
from agent_api.mcp.endpoint import MAX_LISTEN_BYTES
from agent_api.mcp.messages import MAX_PARSED_BYTES, PARSED_FACTOR

ORIGIN = "https://app.example.com"
MODERN, LEGACY = "2026-07-28", "2025-11-25"
ACCEPT = {"Accept": "application/json, text/event-stream"}
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
}


@pytest.fixture
async def api(world: World, nats_url: str) -> AsyncIterator[RunningApi]:
    async with running_agent_api(nats_url, allowed_origins=ORIGIN) as running:
        yield running


@contextlib.asynccontextmanager
async def http_at(api: RunningApi, token: str | None = None, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    known = {**ACCEPT, **bearer(token or agent_token()), **headers}
    async with httpx.AsyncClient(base_url=api.url, headers=known, trust_env=False, timeout=20) as client:
        yield client


def request(method: str, params: Any = None, ident: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": ident, "method": method, "params": params or {}}


async def modern(http: httpx.AsyncClient, method: str, params: Any = None, **headers: str) -> httpx.Response:
    params = {"_meta": META, **(params or {})}
    known = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method}
    known |= {"Mcp-Name": params["name"]} if "name" in params else {}
    return await http.post("/mcp", json=request(method, params), headers=known | headers)


async def legacy(http: httpx.AsyncClient, method: str, params: Any = None, **headers: str) -> httpx.Response:
    return await http.post("/mcp", json=request(method, params), headers={"MCP-Protocol-Version": LEGACY, **headers})


# --- who comes in ---


async def test_foreign_origin_is_refused(api: RunningApi) -> None:
    async with http_at(api, Origin="https://evil.example") as http:
        assert (await modern(http, "tools/list")).status_code == 403
    async with http_at(api, Origin=ORIGIN) as http:
        assert (await modern(http, "tools/list")).status_code == 200


@pytest.mark.parametrize("token", ["none", agent_token(ttl_seconds=-1)])
async def test_bad_token_is_challenged(api: RunningApi, token: str) -> None:
    async with http_at(api, Authorization=f"Bearer {token}") as http:
        answer = await modern(http, "tools/list")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


async def test_application_may_not_speak_it(api: RunningApi) -> None:
    async with http_at(api, app_token()) as http:
        assert (await modern(http, "tools/list")).status_code == 403


async def test_challenge_leads_to_the_authorization_servers(world: World, nats_url: str) -> None:
    issuers = "https://login.example.com, https://login.example.org"
    async with (
        running_agent_api(nats_url, oauth_issuers=issuers, jwt_audience="agentbridge,https://other.example/mcp") as api,
        http_at(api, Authorization="") as http,
    ):
        challenge = (await modern(http, "tools/list")).headers["www-authenticate"]
        url = challenge.removeprefix('Bearer resource_metadata="').removesuffix('"')
        found = (await http.get(url)).json()
        assert found["authorization_servers"] == ["https://login.example.com", "https://login.example.org"]
        assert found["resource"] == f"{api.url}/mcp"
        for audience, status in (("https://other.example/mcp", 200), ("https://third.example/mcp", 401)):
            token = agent_token(audience=audience)
            assert (await modern(http, "tools/list", Authorization=f"Bearer {token}")).status_code == status


async def test_without_authorization_servers_there_is_no_metadata(api: RunningApi) -> None:
    async with http_at(api) as http:
        assert (await http.get("/.well-known/oauth-protected-resource/mcp")).status_code == 404


# --- what is refused ---


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[]", -32600),
        (b"", -32700),
        (b"{", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"\xff"}', -32700),
        (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0"}', -32600),
        (b'{"jsonrpc":"2.0","id":1}', -32600),
        (b'{"jsonrpc":"2.0","result":{}}', -32600),
    ],
)
async def test_what_is_no_message_is_refused(api: RunningApi, body: bytes, code: int) -> None:
    async with http_at(api) as http:
        answer = await http.post("/mcp", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


@pytest.mark.parametrize("fields", [{"method": "notifications/initialized"}, {"id": 7, "result": {}}])
async def test_notification_and_response_are_taken(api: RunningApi, fields: dict[str, Any]) -> None:
    async with http_at(api) as http:
        answer = await http.post("/mcp", json={"jsonrpc": "2.0", **fields}, headers={"MCP-Protocol-Version": LEGACY})
        assert (answer.status_code, answer.content) == (202, b"")


async def test_params_that_are_parsed_are_bounded(api: RunningApi) -> None:
    async with http_at(api) as http:
        meta = {**META, "x": "x" * MAX_PARSED_BYTES}
        answer = await modern(http, "tools/list", {"_meta": meta})
        assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


async def test_call_under_way_counts_as_much_as_it_takes(world: World, api: RunningApi) -> None:
    await world.put("c1", [function("never")])
    await world.hold("c1", never)
    async with http_at(api) as http, asyncio.TaskGroup() as tasks:
        await listed(http, "never")
        params = {"name": "never", "arguments": {}, "_meta": {**META, "x": "x" * 60_000}}
        calling = tasks.create_task(modern(http, "tools/call", params))
        await until(lambda: world.received("call"), 5)
        counted = api.admission.counters()
        assert counted["commandsInFlight"] == 1
        assert counted["sharesUsedPercent:commands"] == round(100 * 60_000 * PARSED_FACTOR / MAX_BYTES) > 0
        calling.cancel()
    await until(lambda: api.admission.counters()["commandsInFlight"] == 0, 5)
    assert api.admission.counters()["sharesUsedPercent:commands"] == 0


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Mcp-Method": "tools/call"}, -32020),
        ({"MCP-Protocol-Version": "2099-01-01"}, -32020),
        ({"Mcp-Name": "=?base64?bm90aGluZw==?="}, -32602),
    ],
)
async def test_headers_have_to_say_what_the_body_says(api: RunningApi, headers: dict[str, str], code: int) -> None:
    async with http_at(api) as http:
        method = "tools/call" if "Mcp-Name" in headers else "tools/list"
        answer = await modern(http, method, {"name": "nothing"} if "Mcp-Name" in headers else {}, **headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


async def test_method_that_is_not_known_is_told_so(api: RunningApi) -> None:
    async with http_at(api) as http:
        answer = await modern(http, "tools/burn")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, -32601)
        answer = await legacy(http, "tools/burn")
        assert (answer.status_code, answer.json()["error"]["code"]) == (200, -32601)


async def test_modern_clients_post_only(api: RunningApi) -> None:
    async with http_at(api) as http:
        for method in ("GET", "DELETE", "PUT"):
            answer = await http.request(method, "/mcp", headers={"MCP-Protocol-Version": MODERN})
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert (await http.delete("/mcp")).status_code == 200
        assert (await http.post("/mcp", json={}, headers={"Accept": "text/html"})).status_code == 406


async def test_list_before_the_clients_are_known_is_an_error_and_never_empty(nats_url: str) -> None:
    async with world_at(nats_url, bucket=False), running_agent_api(nats_url) as api, http_at(api) as http:
        answer = await modern(http, "tools/list")
        assert (answer.status_code, answer.json()["error"]["data"]["code"]) == (503, "unavailable")


# --- results ---


async def called(http: httpx.AsyncClient, name: str, version: str = MODERN, /, **arguments: Any) -> Any:
    call = modern if version == MODERN else legacy
    answer = (await call(http, "tools/call", {"name": name, "arguments": arguments})).json()
    assert "result" in answer, answer
    return answer["result"]


async def listed(http: httpx.AsyncClient, *names: str) -> None:
    async def as_expected() -> bool:
        found = (await modern(http, "tools/list")).json()["result"]["tools"]
        return {tool["name"] for tool in found} == set(names)

    await until(as_expected, 5)


@pytest.mark.parametrize("version", [MODERN, LEGACY])
async def test_failure_is_a_result_that_a_model_can_read(world: World, api: RunningApi, version: str) -> None:
    def fail(message: Any) -> None:
        raise Fault("invalid_parameters", "`parameters/title`: is missing")

    await world.put("c1", [function("add")])
    await world.hold("c1", fail)
    async with http_at(api) as http:
        await listed(http, "add")
        result = await called(http, "add", version)
    assert result["isError"] is True
    assert result["content"] == [{"type": "text", "text": "invalid_parameters: `parameters/title`: is missing"}]
    assert result["structuredContent"]["error"]["code"] == "invalid_parameters"


@pytest.mark.parametrize(("version", "structure"), [(MODERN, [1, "x"]), (LEGACY, None)])
async def test_list_is_structure_where_that_is_allowed(
    world: World, api: RunningApi, version: str, structure: Any
) -> None:
    await world.put("c1", [function("f")])
    await world.hold("c1", lambda message: [1, "x"])
    async with http_at(api) as http:
        await listed(http, "f")
        result = await called(http, "f", version)
    assert result.get("structuredContent") == structure
    assert json.loads(result["content"][0]["text"]) == [1, "x"]


@pytest.mark.parametrize("version", [MODERN, LEGACY, "2024-11-05"])
async def test_result_in_the_shape_of_the_protocol_is_passed_on(world: World, api: RunningApi, version: str) -> None:
    image = {"type": "image", "data": "AA", "mimeType": "image/png"}
    shaped = {"content": [{"type": "text", "text": "Hi", "_meta": 3}, image]}
    await world.put("c1", [function("f")])
    await world.hold("c1", lambda message: shaped)
    async with http_at(api) as http:
        await listed(http, "f")
        result = await called(http, "f", version)
    assert [item["type"] for item in result["content"]] == ["text", "image"]
    assert result["content"][0]["text"] == "Hi"


@pytest.mark.parametrize("version", [MODERN, LEGACY])
async def test_hostile_capabilities_beside_a_sound_one(world: World, api: RunningApi, version: str) -> None:
    schemas = [
        {},
        {"anyOf": [{}]},
        {"type": "array"},
        {"$ref": "#"},
        {"type": ["object", "null"]},
        {"x-mcp-header": "["},
    ]
    hostile = [function(f"h{n}.\u202e", parameters=schemas[n % 6], result={"type": "array"}) for n in range(50)]
    await world.put("c1", [function("sound", description="I am sound")])
    await world.put("c2", [*hostile, "find_tools"], connected_at="2026-01-02T00:00:00.000Z")
    call = modern if version == MODERN else legacy

    async with http_at(api) as http:

        async def all_there() -> list[Any]:
            found: list[Any] = (await call(http, "tools/list")).json()["result"]["tools"]
            return found if len(found) > 30 else []

        tools = await until(all_there, 5)
        await world.hold("c1", lambda message: "done")
        assert (await called(http, "sound", version))["content"] == [{"type": "text", "text": "done"}]
    assert tools[0] == {"name": "sound", "description": "I am sound", "inputSchema": {"type": "object"}}
    assert not any("outputSchema" in tool for tool in tools)


@pytest.mark.parametrize("value", ["x", True, 0, -1, 1.5, 10**9])
async def test_timeout_that_is_none_is_told(world: World, api: RunningApi, value: Any) -> None:
    await world.put("c1", [function("add")])
    async with http_at(api) as http:
        await listed(http, "add")
        wrong = await modern(http, "tools/call", {"name": "add", "_meta": {**META, "agentbridge/timeoutMs": value}})
    sentence = "`_meta.agentbridge/timeoutMs`: must be a whole number of milliseconds, from 1 to 999999999"
    assert wrong.json()["result"]["content"][0]["text"] == f"invalid_request: {sentence}"


async def test_timeout_reaches_the_application(world: World, api: RunningApi) -> None:
    await world.put("c1", [function("add")])
    await world.hold("c1", lambda message: message["timeoutMs"])
    async with http_at(api) as http:
        await listed(http, "add")
        for asked, given in ((1500.0, 1500), (999_999_999, 300_000)):
            meta = {**META, "agentbridge/timeoutMs": asked}
            answer = await modern(http, "tools/call", {"name": "add", "_meta": meta})
            assert answer.json()["result"]["structuredContent"] <= given
            assert answer.json()["result"]["structuredContent"] > given - 1000


# --- every revision ---


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_older_revisions_are_served(world: World, api: RunningApi, version: str) -> None:
    await world.put("c1", [function("add")])
    await world.hold("c1", lambda message: {"done": True})
    hello = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    async with http_at(api) as http:
        await listed(http, "add")
        begun = await http.post("/mcp", json=request("initialize", hello))
        assert begun.json()["result"]["protocolVersion"] == version
        assert begun.json()["result"]["capabilities"]["tools"] == {"listChanged": True}
        known = {"Mcp-Session-Id": begun.headers["mcp-session-id"]}
        if version >= "2025-06-18":  # the header is as old as this revision
            known["MCP-Protocol-Version"] = version
        tools = (await http.post("/mcp", json=request("tools/list"), headers=known)).json()["result"]["tools"]
        assert tools == [{"name": "add", "inputSchema": {"type": "object"}}]
        call = request("tools/call", {"name": "add", "arguments": {}})
        result = (await http.post("/mcp", json=call, headers=known)).json()["result"]
        assert json.loads(result["content"][0]["text"]) == {"done": True}


async def test_revision_that_is_not_known_is_told_which_are(api: RunningApi) -> None:
    async with http_at(api) as http:
        meta = {**META, "io.modelcontextprotocol/protocolVersion": "2099-01-01"}
        headers = {"MCP-Protocol-Version": "2099-01-01", "Mcp-Method": "tools/list"}
        answer = await http.post("/mcp", json=request("tools/list", {"_meta": meta}), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32022)
        assert MODERN in answer.json()["error"]["data"]["supported"]


# --- which tools ---


@pytest.mark.parametrize("version", [MODERN, LEGACY])
async def test_host_sees_the_tools_that_its_url_names(world: World, api: RunningApi, version: str) -> None:
    await world.put("c1", [function("a"), function("b")], app={"name": "one"})
    await world.put("c2", [function("c")], app={"name": "two"})
    await world.hold("c1", lambda message: "done")
    async with http_at(api) as http:
        await listed(http, "a", "b", "c")
        for query, names in (("app=one", ["a", "b"]), ("tools=b,c", ["b", "c"]), ("app=two&tools=a", [])):
            async with http_at(api) as narrowed:
                narrowed.params = httpx.QueryParams(query)
                call = modern if version == MODERN else legacy
                found = (await call(narrowed, "tools/list")).json()["result"]["tools"]
                assert sorted(tool["name"] for tool in found) == names
                answer = (await call(narrowed, "tools/call", {"name": "a", "arguments": {}})).json()
                assert ("result" in answer) == ("a" in names)
        wrong = await http.post("/mcp?tool=a", json=request("tools/list"))
        assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("version", [MODERN, LEGACY])
async def test_tools_beyond_the_list_are_found_and_called(world: World, api: RunningApi, version: str) -> None:
    many = [function(f"f{number:03}", description="one of many") for number in range(150)]
    await world.put("c1", many)
    young = "2026-01-02T00:00:00.000Z"
    await world.put("c2", [function("zebra", description="Paint stripes")], connected_at=young)
    await world.hold("c2", lambda message: {"painted": message["parameters"]})
    async with http_at(api) as http:
        call = modern if version == MODERN else legacy
        await until(lambda: count_of(http, 128), 5)
        names = [tool["name"] for tool in (await call(http, "tools/list")).json()["result"]["tools"]]
        assert names[-3:] == ["find_tools", "call_tool", "find_clients"]
        assert "zebra" not in names
        await until(lambda: finds(http, "zebra"), 5)
        found = await called(http, "find_tools", version, query="stripes")
        assert [tool["name"] for tool in found["structuredContent"]["tools"]] == ["zebra"]
        result = await called(http, "call_tool", version, name="zebra", arguments={"x": 1})
        assert result["structuredContent"] == {"painted": {"x": 1}}


async def finds(http: httpx.AsyncClient, name: str) -> bool:
    found = await called(http, "find_tools", query="stripes")
    return [tool["name"] for tool in found["structuredContent"]["tools"]] == [name]


async def count_of(http: httpx.AsyncClient, count: int) -> bool:
    return len((await modern(http, "tools/list")).json()["result"]["tools"]) == count


# --- whom it is for ---


async def test_user_of_a_host_that_can_ask_chooses_the_client(world: World, api: RunningApi, nats_url: str) -> None:
    from mcp_types import ElicitResult

    asked: list[Any] = []

    async def choose(context: Any, params: Any) -> ElicitResult:
        asked.append(params)
        return ElicitResult(action="accept", content={"client": "bob"})

    for client_id in ("ann", "bob"):
        await world.put(client_id, [function("add")], principal=client_id)
    await world.hold("bob", lambda message: "bob did it")
    async with http_at(api) as http:
        await listed(http, "add")
    async with mcp_client(f"{api.url}/mcp", MODERN, elicitation_callback=choose) as client:
        result = await client.call_tool("add", {"x": 1})
    assert text_of(result) == "bob did it"
    choices = asked[0].requested_schema["properties"]["client"]["oneOf"]
    assert [choice["const"] for choice in choices] == ["ann", "bob"]


async def answered_by_the_user(http: httpx.AsyncClient, asked: dict[str, Any]) -> Any:
    """Call `add` again, as a host does whose user has chosen Bob's client."""
    responses = {"client": {"action": "accept", "content": {"client": "bob"}}}
    params = {**ASKING, "inputResponses": responses, "requestState": asked["requestState"]}
    return (await modern(http, "tools/call", params)).json()["result"]


ASKING = {
    "name": "add",
    "arguments": {"x": 1},
    "_meta": {**META, "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}}},
}
SHARED_SECRETS: list[dict[str, Any]] = [
    {},
    {"auth": "off", "jwt_secret": None, "resume_secret": "a-secret-of-both-that-is-long-enough"},
]


@pytest.mark.parametrize("settings", SHARED_SECRETS)
async def test_choice_may_come_back_to_another_replica(world: World, nats_url: str, settings: dict[str, Any]) -> None:
    for client_id in ("ann", "bob"):
        await world.put(client_id, [function("add")], principal=client_id)
    await world.hold("bob", lambda message: "bob did it")
    async with (
        running_agent_api(nats_url, **settings) as one,
        running_agent_api(nats_url, **settings) as two,
        http_at(one) as first,
        http_at(two) as second,
    ):
        await listed(first, "add")
        await listed(second, "add")
        asked = (await modern(first, "tools/call", ASKING)).json()["result"]
        assert asked["resultType"] == "input_required"
        result = await answered_by_the_user(second, asked)
        assert result["content"] == [{"type": "text", "text": "bob did it"}]
        forged = await answered_by_the_user(second, {"requestState": asked["requestState"][:-4] + "AAAA"})
        assert "`requestState`" in forged["content"][0]["text"]


async def test_without_a_shared_secret_the_model_chooses(world: World, nats_url: str) -> None:
    for client_id in ("ann", "bob"):
        await world.put(client_id, [function("add")], principal=client_id)
    async with running_agent_api(nats_url, auth="off", jwt_secret=None) as api, http_at(api) as http:
        await listed(http, "add")
        result = (await modern(http, "tools/call", ASKING)).json()["result"]
    assert (result["resultType"], result["isError"]) == ("complete", True)
    assert result["content"][0]["text"].startswith("ambiguous_client: ")


@pytest.mark.parametrize("mode", [MODERN, "legacy"])
async def test_host_that_cannot_ask_is_told_the_choices(world: World, api: RunningApi, mode: str) -> None:
    for client_id in ("ann", "bob"):
        await world.put(client_id, [function("add")], principal=client_id)
    async with http_at(api) as http:
        await listed(http, "add")
    async with mcp_client(f"{api.url}/mcp", mode) as client:
        result = await client.call_tool("add")
    assert result.is_error
    assert "ambiguous_client" in text_of(result)
    assert '{"clientId":"ann","user":"ann"}' in text_of(result)


# --- cancelling in the older era ---


async def test_another_principal_cannot_cancel_by_the_same_names(world: World, api: RunningApi, nats_url: str) -> None:
    await world.put("c1", [function("never")])
    await world.hold("c1", never)
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
    session = {"MCP-Protocol-Version": LEGACY, "Mcp-Session-Id": "s1"}
    async with (
        running_agent_api(nats_url) as other,
        http_at(api) as http,
        http_at(api, agent_token("stranger")) as stranger,
        http_at(other) as elsewhere,
        asyncio.TaskGroup() as tasks,
    ):
        await listed(http, "never")
        call = request("tools/call", {"name": "never", "arguments": {}}, 7)
        calling = tasks.create_task(http.post("/mcp", json=call, headers=session))
        await until(lambda: world.received("call"), 5)
        assert (await stranger.post("/mcp", json=cancel, headers=session)).status_code == 202
        same_session = {**session, "Mcp-Session-Id": "s2"}
        assert (await http.post("/mcp", json=cancel, headers=same_session)).status_code == 202
        assert (await elsewhere.get("/readyz")).status_code == 200
        assert not world.received("cancel")
        assert not calling.done()
        assert (await elsewhere.post("/mcp", json=cancel, headers=session)).status_code == 202
        answer = await calling
        assert answer.json()["error"]["code"] == -32800
        await until(lambda: world.received("cancel"), 5)


async def test_forged_message_between_agent_apis_harms_nobody(world: World, api: RunningApi, nats_url: str) -> None:
    client = await nats.connect(nats_url)
    for data in (b"", b"[]", b"\xff", b'{"tenant":1}', b'{"tenant":"default","sub":"x","session":"","id":1}'):
        await client.publish("agentbridge._api.mcp.cancel", data)
    await client.close()
    async with http_at(api) as http:
        assert (await modern(http, "tools/list")).status_code == 200


# --- streams ---


async def test_streams_end_with_the_token(world: World, api: RunningApi) -> None:
    token = agent_token("short", ttl_seconds=3)
    async with http_at(api, token) as http:
        await modern(http, "tools/list")  # the library is there
        begun = time.monotonic()
        listen = {"_meta": META, "notifications": {"toolsListChanged": True}}
        headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "subscriptions/listen"}
        whole = await http.post("/mcp", json=request("subscriptions/listen", listen, "l1"), headers=headers)
        messages = [json.loads(line[6:]) for line in whole.text.splitlines() if line.startswith("data: ")]
        assert messages[0]["method"] == "notifications/subscriptions/acknowledged"
        assert messages[0]["params"]["notifications"] == {"toolsListChanged": True}
        assert messages[-1]["id"] == "l1"
        assert messages[-1]["result"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == "l1"
        assert time.monotonic() - begun < 10
        assert (await modern(http, "tools/list")).status_code == 401


async def test_request_that_is_held_as_long_as_its_stream_is_bounded(api: RunningApi) -> None:
    async with http_at(api) as http:
        params = {"_meta": {**META, "x": "x" * MAX_LISTEN_BYTES}, "notifications": {"toolsListChanged": True}}
        answer = await modern(http, "subscriptions/listen", params)
        assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


async def test_stream_of_an_older_client_ends_with_the_token(world: World, api: RunningApi) -> None:
    async with http_at(api, agent_token("short", ttl_seconds=3)) as http:
        await modern(http, "tools/list")  # the library is there
        async with asyncio.timeout(10), http.stream("GET", "/mcp") as stream:
            assert stream.status_code == 200
            async for _ in stream.aiter_lines():
                pass
        assert (await modern(http, "tools/list")).status_code == 401


async def test_changes_are_told_once_a_second_at_most(world: World, api: RunningApi) -> None:
    told: list[float] = []

    async def change() -> None:
        for number in itertools.count():
            await world.put("c1", [function(f"f{number}")], revision=number + 1)
            await asyncio.sleep(0.02)

    async with http_at(api) as http, asyncio.TaskGroup() as tasks:
        headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "subscriptions/listen"}
        listen = request("subscriptions/listen", {"_meta": META, "notifications": {"toolsListChanged": True}})
        async with asyncio.timeout(20), http.stream("POST", "/mcp", json=listen, headers=headers) as stream:
            changing = tasks.create_task(change())
            async for line in stream.aiter_lines():
                if "list_changed" in line:
                    told.append(time.monotonic())
                if len(told) == 4:
                    break
        changing.cancel()
    assert min(later - earlier for earlier, later in itertools.pairwise(told)) > 0.9


async def test_streams_of_an_agent_are_bounded(world: World, api: RunningApi) -> None:
    async with http_at(api) as http, contextlib.AsyncExitStack() as streams:
        statuses = []
        for _ in range(65):
            answer = await streams.enter_async_context(http.stream("GET", "/mcp"))
            statuses.append(answer.status_code)
        assert statuses == [200] * 64 + [429]
        async with http_at(api, agent_token("another")) as other, other.stream("GET", "/mcp") as answer:
            assert answer.status_code == 200


async def test_streams_end_when_the_process_does(world: World, nats_url: str) -> None:
    async with running_agent_api(nats_url) as api, http_at(api) as http, http.stream("GET", "/mcp") as stream:
        assert stream.status_code == 200
        begun = time.monotonic()
        await api.drain()
        assert time.monotonic() - begun < 10


async def test_reader_that_comes_back_is_told_that_it_may_have_missed_something(api: RunningApi) -> None:
    async with http_at(api) as http:
        headers = {"MCP-Protocol-Version": LEGACY, "Last-Event-ID": "0"}
        async with asyncio.timeout(10), http.stream("GET", "/mcp", headers=headers) as stream:
            async for line in stream.aiter_lines():
                if "list_changed" in line:
                    return


async def test_without_the_library_everything_else_works(
    world: World, api: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "agent_api.mcp.library", None)
    await world.put("c1", [function("add")])
    async with http_at(api) as http:
        answer = await modern(http, "tools/list")
        assert answer.status_code == 501
        assert "pip install 'agentbridge-nats[mcp]'" in answer.json()["message"]
        assert (await http.get("/api/tools")).status_code == 200
