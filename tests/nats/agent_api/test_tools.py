"""Tools over HTTP: lists in the words of each provider, calls, and what both refuse."""

from functools import partial
from typing import Any

import httpx
import pytest
from support.played.agent_api import RunningApi, World, function, http_client, running_agent_api
from support.settings import agent_token, bearer
from support.wait import until

ADD = function(
    "add", description="Add an item", parameters={"type": "object", "properties": {"title": {"type": "string"}}}
)
SCHEMA = ADD["parameters"]


async def tools_of(http: httpx.AsyncClient, **query: str) -> list[Any]:
    answer = await http.get("/api/tools", params=query)
    assert answer.status_code == 200, answer.text
    found: list[Any] = answer.json()["tools"]
    return found


async def named(http: httpx.AsyncClient, *names: str) -> None:
    """Wait until exactly these tools are listed."""

    async def as_expected() -> bool:
        answer = await http.get("/api/tools")
        if answer.status_code == 503:  # the list of clients has not been read yet
            return False
        assert answer.status_code == 200, answer.text
        return {tool["name"] for tool in answer.json()["tools"]} == set(names)

    await until(as_expected, 5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mcp", {"name": "add", "description": "Add an item", "inputSchema": SCHEMA}),
        (
            "openai",
            {"type": "function", "function": {"name": "add", "description": "Add an item", "parameters": SCHEMA}},
        ),
        ("anthropic", {"name": "add", "description": "Add an item", "input_schema": SCHEMA}),
        (
            "gemini",
            {"functionDeclarations": [{"name": "add", "description": "Add an item", "parametersJsonSchema": SCHEMA}]},
        ),
    ],
)
async def test_tools_in_the_words_of_a_provider(
    world: World, http: httpx.AsyncClient, name: str, expected: Any
) -> None:
    await world.put("c1", [ADD])
    await named(http, "add")
    assert await tools_of(http, format=name) == [expected]


async def test_tool_is_called_with_its_arguments_as_the_body(world: World, http: httpx.AsyncClient) -> None:
    await world.put("c1", [ADD])
    await world.hold("c1", lambda message: {"added": message["parameters"]["title"], "target": message["target"]})
    await named(http, "add")
    answer = await http.post("/api/tools/add", json={"title": "Milk"})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["clientId"], answer.json()["result"]) == ("c1", {"added": "Milk", "target": "add"})


async def test_client_is_chosen_in_the_query(world: World, http: httpx.AsyncClient) -> None:
    for client_id in ("ann", "bob"):
        await world.put(client_id, [ADD], principal=client_id)
        await world.hold(client_id, partial(_say, client_id))
    await named(http, "add")
    refused = await http.post("/api/tools/add", json={})
    assert (refused.status_code, refused.json()["code"]) == (409, "ambiguous_client")
    assert [choice["clientId"] for choice in refused.json()["details"]["clients"]] == ["ann", "bob"]
    assert (await http.post("/api/tools/add?clientId=bob", json={})).json()["result"] == "bob"
    assert (await http.post("/api/tools/add", json={"_client": "ann"})).json()["result"] == "ann"


def _say(who: str, message: Any) -> str:
    return who


async def test_component_action_is_a_tool(world: World, http: httpx.AsyncClient) -> None:
    await world.put("c1", [{"type": "component", "id": "cart", "actions": ["clear"]}])
    await world.hold("c1", lambda message: [message["target"], message["action"]])
    await named(http, "cart_clear")
    assert (await http.post("/api/tools/cart_clear", json={})).json()["result"] == ["cart", "clear"]


async def test_tools_beyond_the_list_are_found_and_called(world: World, http: httpx.AsyncClient) -> None:
    many = [function(f"f{number:03}", description="one of many") for number in range(150)]
    await world.put("c1", [*many, function("zebra", description="Paint stripes")])
    await world.hold("c1", lambda message: message["target"])
    await until(lambda: tools_of(http), 5)
    listed = [tool["name"] for tool in await tools_of(http)]
    assert len(listed) == 128
    assert listed[-3:] == ["find_tools", "call_tool", "find_clients"]
    found = (await http.post("/api/tools/find_tools", json={"query": "stripes"})).json()["result"]["tools"]
    assert [tool["name"] for tool in found] == ["zebra"]
    called = await http.post("/api/tools/call_tool", json={"name": "zebra", "arguments": {}})
    assert called.json()["result"] == "zebra"
    clients = (await http.post("/api/tools/find_clients", json={"tool": "zebra"})).json()["result"]
    assert clients == {"clients": [{"clientId": "c1", "user": "user-1"}], "total": 1}


@pytest.mark.parametrize("value", ["", "x", "0", "-1", "1.5", "1000000000", "9" * 5000])
async def test_timeout_that_is_none_is_told(world: World, http: httpx.AsyncClient, value: str) -> None:
    answer = await http.post("/api/tools/add", params={"timeoutMs": value}, json={})
    assert answer.json()["message"] == "`timeoutMs`: must be a whole number of milliseconds, from 1 to 999999999"


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "/api/tools?format=cobol", None, "invalid_request"),
        ("GET", "/api/tools?tool=add", None, "invalid_request"),
        ("GET", "/api/tools?tools=", None, "invalid_request"),
        ("GET", "/api/tools?app=a&app=b", None, "invalid_request"),
        ("POST", "/api/tools/add?timeoutMs=-1", {}, "invalid_request"),
        ("POST", "/api/tools/add?client_id=c1", {}, "invalid_request"),
        ("POST", "/api/tools/add", [1], "invalid_request"),
        ("POST", "/api/tools/nothing", {}, "unknown_capability"),
        ("POST", "/api/tools/add?clientId=c9", {}, "client_not_found"),
        ("POST", "/api/tools/find_tools", {"words": "x"}, "invalid_parameters"),
    ],
)
async def test_what_is_wrong_is_told(
    world: World, http: httpx.AsyncClient, method: str, path: str, body: Any, code: str
) -> None:
    await world.put("c1", [ADD])
    await named(http, "add")
    answer = await http.request(method, path, json=body)
    assert answer.json()["code"] == code, answer.text


async def test_neither_of_two_principals_sees_the_others_tools(world: World, api: RunningApi) -> None:
    await world.put("c1", [ADD], principal="ann")
    await world.put("c2", [function("remove")], principal="bob")
    for user, expected in (("ann", "add"), ("bob", "remove")):
        token = agent_token(f"agent-of-{user}", limits={"users": [user]})
        async with httpx.AsyncClient(base_url=api.url, headers=bearer(token), trust_env=False) as http:
            await named(http, expected)


async def test_list_needs_a_token(api: RunningApi) -> None:
    async with httpx.AsyncClient(base_url=api.url, trust_env=False) as http:
        assert (await http.get("/api/tools")).status_code == 401
        assert (await http.post("/api/tools/add", json={})).status_code == 401


async def test_list_follows_what_clients_offer(world: World, http: httpx.AsyncClient) -> None:
    await world.put("c1", [ADD])
    await named(http, "add")
    await world.put("c1", [ADD, function("b")], revision=2)
    await named(http, "add", "b")
    await world.remove("c1")
    await named(http)


async def test_process_that_began_later_gives_a_name_to_the_same_tool(
    world: World, http: httpx.AsyncClient, nats_url: str
) -> None:
    one, two = ({"type": "object", "required": [name]} for name in ("a", "b"))
    await world.put("c1", [function("add", parameters=one)], connected_at="2026-01-01T00:00:00.000Z")
    await named(http, "add")
    await world.put("c2", [function("add", parameters=two)], connected_at="2026-01-02T00:00:00.000Z")
    await until(lambda: has(http, 2), 5)
    await world.remove("c1")  # its page reloads
    await until(lambda: has(http, 1), 5)
    await world.put("c3", [function("add", parameters=one)], connected_at="2026-01-03T00:00:00.000Z")
    await until(lambda: has(http, 2), 5)
    async with running_agent_api(nats_url) as later, http_client(later) as other:
        await until(lambda: has(other, 2), 5)
        assert await tools_of(other) == await tools_of(http)
        assert (await tools_of(other))[0] == {"name": "add", "inputSchema": one}


async def has(http: httpx.AsyncClient, count: int) -> bool:
    return len(await tools_of(http)) == count
