"""Agents of the original project's SDK over real sockets and a real NATS, with gateways that the test plays."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.nats.audit import recorded
from support.nats.stores import make_store
from support.played.agent_api import (
    Fault,
    RunningApi,
    World,
    function,
    http_client,
    listed,
    never,
)
from support.played.agent_socket import AgentSocket, agent_socket
from support.settings import agent_token, app_token
from support.wait import until
from websockets.exceptions import ConnectionClosed

from agent_api.http.connections import SDK_SOCKET_PATHS
from agent_api.socket.session import MAX_IN_FLIGHT
from protocol.runtime.streams.stores import audit_of

MENU = {"type": "component", "id": "menu", "componentType": "menu", "actions": ["open", "update_component"]}


@pytest.fixture
async def agent(api: RunningApi) -> AsyncIterator[AgentSocket]:
    async with agent_socket(api.url, path=SDK_SOCKET_PATHS[0]) as connected:
        yield connected


def names(frame: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the capabilities in a frame, and whose they are."""
    told = frame.get("capabilities", frame)
    return [(each.get("name") or each["id"], each["clientId"]) for each in (*told["functions"], *told["components"])]


async def known(agent: AgentSocket, *capabilities: tuple[str, str]) -> None:
    """Wait until the agent has been told of exactly these capabilities."""

    def is_told() -> bool:
        told = agent.all_received(type="capabilities_updated")
        return bool(told) and names(told[-1]) == list(capabilities)

    await until(is_told)


async def test_capabilities_are_told_at_the_beginning_and_after_each_change(world: World, api: RunningApi) -> None:
    await world.put("c1", [function("add")])
    for path in SDK_SOCKET_PATHS:
        async with agent_socket(api.url, path=path) as agent:
            await known(agent, ("add", "c1"))
            await world.put("c2", [MENU])
            await known(agent, ("add", "c1"), ("menu", "c2"))
            [told] = agent.all_received(type="capabilities_updated")[-1]["capabilities"]["components"]
            assert told == {**MENU, "clientId": "c2", "actions": {"open": {}, "update_component": {}}}
            await world.remove("c2")
            await known(agent, ("add", "c1"))


async def test_client_that_is_away_is_in_no_list_until_it_is_back(world: World, agent: AgentSocket) -> None:
    """This form has no word for a client's state, so it names only those that a command can reach."""
    await world.put("c1", [function("add")])
    await world.put("c2", [function("say")])
    await known(agent, ("add", "c1"), ("say", "c2"))
    await world.put("c2", [function("say")], state="detached", revision=2)
    await known(agent, ("add", "c1"))
    await agent.send({"type": "query_capabilities", "id": "q"})
    assert names(await agent.received(type="capabilities_result")) == [("add", "c1")]
    await world.put("c2", [function("say")], revision=3)
    await known(agent, ("add", "c1"), ("say", "c2"))


async def test_query_is_answered_by_its_id_and_its_filters(world: World, agent: AgentSocket) -> None:
    await world.put("c1", [function("add", tags=["sum"]), function("say")])
    await world.put("c2", [MENU])
    await known(agent, ("add", "c1"), ("say", "c1"), ("menu", "c2"))
    for ident, filters, expected in (
        ("q1", {"functionTags": ["sum"]}, [("add", "c1"), ("menu", "c2")]),
        ("q2", {"functionTags": ["sum"], "componentType": "form"}, [("add", "c1")]),
        ("q3", {}, [("add", "c1"), ("say", "c1"), ("menu", "c2")]),
    ):
        await agent.send({"type": "query_capabilities", "id": ident, "filters": filters})
        assert names(await agent.received(type="capabilities_result", correlationId=ident)) == expected


async def test_commands_of_all_three_kinds_are_executed(world: World, agent: AgentSocket) -> None:
    await world.put("c1", [function("add"), MENU])
    await world.hold("c1", lambda message: [message["target"], message.get("action"), message.get("parameters", {})])
    await known(agent, ("add", "c1"), ("menu", "c1"))

    await agent.send({"type": "call_function", "id": "m1", "clientId": "c1", "name": "add", "parameters": {"a": 1}})
    await agent.send({"type": "call_component_action", "id": "menu", "action": "open"})
    await agent.send({"type": "update_component", "id": "m3", "componentId": "menu", "properties": {"at": 2}})

    results = [await agent.received(correlationId=ident) for ident in ("m1", "menu", "m3")]
    assert [(each["type"], each["success"], each["data"], each["clientId"]) for each in results] == [
        ("function_result", True, ["add", None, {"a": 1}], "c1"),
        ("component_action_result", True, ["menu", "open", {}], "c1"),
        ("component_update_result", True, ["menu", "update_component", {"at": 2}], "c1"),
    ]


async def test_same_component_is_called_often_at_once_under_its_own_id(world: World, agent: AgentSocket) -> None:
    await world.put("c1", [MENU])
    await world.hold("c1", lambda message: message["parameters"]["n"])
    await known(agent, ("menu", "c1"))
    for number in range(20):
        await agent.send({"type": "call_component_action", "id": "menu", "action": "open", "parameters": {"n": number}})
    results = await until(lambda: found if len(found := agent.all_received(correlationId="menu")) == 20 else [])
    assert sorted(each["data"] for each in results) == list(range(20))


async def test_error_says_for_whom_a_command_could_not_be(world: World, agent: AgentSocket) -> None:
    await world.put("c1", [function("add")])
    await world.put("c2", [function("add")])
    await known(agent, ("add", "c1"), ("add", "c2"))
    await agent.send({"type": "call_function", "id": "m1", "name": "add"})
    await agent.send({"type": "call_function", "id": "m2", "name": "add", "clientId": "nobody"})
    await agent.send({"type": "call_function", "id": "m3", "name": "sub"})
    first, second, third = [await agent.received(correlationId=ident) for ident in ("m1", "m2", "m3")]
    assert (first["type"], first["code"], first["details"]["clients"]) == ("error", "missing_client_id", ["c1", "c2"])
    assert (second["type"], second["code"]) == ("error", "client_not_found")
    assert (third["type"], third["success"], third["error"]["code"]) == ("function_result", False, "unknown_capability")


async def test_fault_of_the_application_and_timeout_are_results(world: World, agent: AgentSocket) -> None:
    def refuse(_: object) -> None:
        raise Fault("invalid_parameters", "`a`: expected a number")

    await world.put("c1", [function("add")])
    await world.put("c2", [function("never")])
    await world.hold("c1", refuse)
    await world.hold("c2", never)
    await known(agent, ("add", "c1"), ("never", "c2"))
    await agent.send({"type": "call_function", "id": "m1", "name": "add"})
    result = await agent.received(correlationId="m1")
    assert (result["success"], result["error"]) == (
        False,
        {"code": "invalid_parameters", "message": "`a`: expected a number"},
    )
    await agent.send({"type": "call_function", "id": "m2", "name": "never"})
    await until(lambda: len(world.received()) == 2)
    await agent.send({"type": "cancel", "id": "m2"})
    assert (await agent.received(correlationId="m2"))["error"]["code"] == "cancelled"
    await until(lambda: world.received("cancel"))


async def test_token_decides_as_on_the_other_socket(world: World, api: RunningApi) -> None:
    for token, code in ((None, 4001), (app_token(), 4003), (agent_token(ttl_seconds=-1), 4003)):
        async with agent_socket(api.url, token, path=SDK_SOCKET_PATHS[0]) as refused:
            assert await refused.closed() == code
    async with agent_socket(api.url, agent_token(ttl_seconds=2), path=SDK_SOCKET_PATHS[0]) as agent:
        await agent.send({"type": "auth", "id": "fresh", "token": agent_token()})
        assert (await agent.received(type="ack"))["id"] == "fresh"
    async with agent_socket(api.url, agent_token(ttl_seconds=1), path=SDK_SOCKET_PATHS[0]) as agent:
        assert await agent.closed() == 4003


async def test_limits_of_a_token_hold_for_lists_pushes_and_commands(world: World, api: RunningApi) -> None:
    await world.put("c1", [function("add")], principal="ann")
    await world.put("c2", [function("add")], principal="bob")
    limited = agent_token(limits={"users": ["bob"]})
    async with agent_socket(api.url, limited, path=SDK_SOCKET_PATHS[0]) as agent:
        await known(agent, ("add", "c2"))
        await world.put("c1", [function("add"), function("more")], principal="ann")
        await world.put("c3", [function("say")], principal="bob")
        await known(agent, ("add", "c2"), ("say", "c3"))
        assert "c1" not in json.dumps(agent.frames)


async def test_fresh_token_changes_what_is_told(world: World, api: RunningApi) -> None:
    await world.put("c1", [function("add")], principal="ann")
    await world.put("c2", [function("add")], principal="bob")
    async with agent_socket(api.url, path=SDK_SOCKET_PATHS[0]) as agent:
        await known(agent, ("add", "c1"), ("add", "c2"))
        await agent.send({"type": "auth", "token": agent_token(limits={"users": ["bob"]})})
        await known(agent, ("add", "c2"))
        await agent.send({"type": "query_capabilities", "id": "q"})
        assert names(await agent.received(type="capabilities_result")) == [("add", "c2")]


async def test_closed_socket_cancels_its_commands(world: World, api: RunningApi) -> None:
    await world.put("c1", [function("never")])
    await world.hold("c1", never)
    async with agent_socket(api.url, path=SDK_SOCKET_PATHS[0]) as agent:
        await known(agent, ("never", "c1"))
        await agent.send({"type": "call_function", "id": "m1", "name": "never"})
        await until(lambda: world.received())
        await agent.send({"type": "session", "action": "disconnect"})
        assert await agent.closed() == 1000
    await until(lambda: world.received("cancel"))


async def test_more_in_flight_than_a_socket_may_have_is_an_error(world: World, agent: AgentSocket) -> None:
    await world.put("c1", [function("never")])
    await world.hold("c1", never)
    await known(agent, ("never", "c1"))
    for number in range(MAX_IN_FLIGHT + 1):
        await agent.send({"type": "call_function", "id": f"m{number}", "name": "never"})
    error = await agent.received(type="error")
    assert (error["code"], error["retryable"], error["correlationId"]) == ("overloaded", True, f"m{MAX_IN_FLIGHT}")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("[" * 3000, "invalid_frame"),
        (b"\x00\x01", "invalid_frame"),
        ('{"type":"call_function"', "invalid_frame"),
        ('{"type":"call_function","name":"f","clientID":"c1"}', "invalid_frame"),
        ('{"type":"register_capabilities","functions":[]}', "invalid_frame"),
    ],
)
async def test_bad_frame_gets_an_error_and_the_connection_goes_on(
    world: World, agent: AgentSocket, message: str | bytes, code: str
) -> None:
    await agent.send(message)
    assert (await agent.received(type="error"))["code"] == code
    await agent.send({"type": "query_capabilities", "id": "q"})
    assert await agent.received(type="capabilities_result")


async def test_flood_of_bad_frames_is_1008_and_a_neighbour_is_served(world: World, api: RunningApi) -> None:
    await world.put("c1", [function("add")])
    await world.hold("c1", lambda _: 1)
    async with (
        agent_socket(api.url, path=SDK_SOCKET_PATHS[0]) as flooder,
        agent_socket(api.url, agent_token("neighbour")) as neighbour,
        asyncio.TaskGroup() as tasks,
        http_client(api) as http,
    ):
        await listed(http, "c1")
        flood = tasks.create_task(_send_until_closed(flooder))
        while not flood.done():
            assert (await neighbour.call("c1", "add"))["status"] == "success"
        assert await flooder.closed() == 1008


async def _send_until_closed(flooder: AgentSocket) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await flooder.send('{"type":"nothing"}')
            await asyncio.sleep(0)


async def test_refused_command_is_audited(world: World, agent: AgentSocket, nats_url: str) -> None:
    await make_store(world.nats, audit_of("default"))
    await agent.send({"type": "call_function", "id": "m1", "name": "add", "clientId": "no such id!"})
    assert (await agent.received(type="error"))["code"] == "client_not_found"
    [record] = await recorded(nats_url, 1)
    assert (record["outcome"], record["target"]) == ("client_not_found", "add")
