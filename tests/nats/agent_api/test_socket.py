"""The agents' WebSocket over real sockets and a real NATS, with gateways that the test plays."""

import asyncio
from collections.abc import AsyncIterator

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
from support.played.agent_socket import AgentSocket, agent_socket
from support.settings import agent_token
from support.wait import until

from agent_api.socket.session import MAX_IN_FLIGHT

LIMIT = 64 * 1024


@pytest.fixture
async def api(world: World, nats_url: str) -> AsyncIterator[RunningApi]:
    async with running_agent_api(nats_url, max_message_bytes=LIMIT) as running:
        yield running


async def test_command_is_answered_with_what_the_application_returned(world: World, agent: AgentSocket) -> None:
    await world.hold("c1", lambda message: {"sum": message["parameters"]["a"] + 1})

    response = await agent.call("c1", "f", {"a": 1}, id="mine", command={"requestId": "r-1"})

    assert response == {
        "type": "response",
        "id": "mine",
        "requestId": "r-1",
        "status": "success",
        "result": {"sum": 2},
        "clientId": "c1",
        "durationMs": 1,
    }


async def test_gateway_gets_the_agents_own_token(world: World, api: RunningApi) -> None:
    await world.hold("c1", lambda message: None)
    token = agent_token("somebody")
    async with agent_socket(api.url, token) as agent:
        await agent.call("c1", "f", timeoutMs=5000)
    assert world.headers[0]["Authorization"] == f"Bearer {token}"
    assert 4000 < world.received()[0]["timeoutMs"] <= 5000


async def test_error_of_the_gateway_is_passed_on(world: World, agent: AgentSocket) -> None:
    def refuse(message: object) -> None:
        raise Fault("invalid_parameters", "the reason")

    await world.hold("c1", refuse)
    response = await agent.call("c1", "f")
    assert (response["status"], response["error"]["code"]) == ("error", "invalid_parameters")
    assert response["error"]["message"] == "the reason"


@pytest.mark.parametrize("client_id", ["nobody", "no.id", ""])
async def test_unknown_client_is_a_response(world: World, agent: AgentSocket, client_id: str) -> None:
    response = await agent.call(client_id, "f", command={"requestId": "r1"})
    assert (response["type"], response["error"]["code"], response["clientId"], response["requestId"]) == (
        "response",
        "client_not_found",
        client_id,
        "r1",
    )


async def test_without_a_client_the_one_that_offers_the_target_gets_it(
    world: World, api: RunningApi, agent: AgentSocket
) -> None:
    await world.put("c1", [function("f")])
    await world.put("c2", [function("g")])
    await world.put("c3", [function("g")])
    await world.hold("c1", lambda message: "c1")
    async with http_client(api) as http:
        await listed(http, "c1", "c2", "c3")
    assert (await agent.call(None, "f"))["clientId"] == "c1"
    assert (await agent.call(None, "g"))["error"]["details"]["clients"] == ["c2", "c3"]
    assert (await agent.call(None, "h"))["error"]["code"] == "unknown_capability"


async def test_a_hundred_commands_are_in_flight_at_once(world: World, agent: AgentSocket) -> None:
    go = asyncio.Event()

    async def answer(message: dict[str, int]) -> object:
        await go.wait()
        return message["parameters"]

    await world.hold("c1", answer)
    idents = [await agent.command("c1", "f", {"n": number}) for number in range(100)]
    await until(lambda: len(world.received()) == 100)
    go.set()
    for number, ident in enumerate(idents):
        assert (await agent.answer(ident))["result"] == {"n": number}
    assert len(agent.frames) == 100


async def test_more_in_flight_than_a_socket_may_have_is_overloaded(world: World, agent: AgentSocket) -> None:
    await world.hold("c1", never)
    for _ in range(MAX_IN_FLIGHT):
        await agent.command("c1", "f")
    refused = await agent.call("c1", "f", id="one-more")
    assert (refused["type"], refused["code"], refused["retryable"]) == ("error", "overloaded", True)


async def test_id_in_flight_is_a_conflict_and_may_be_used_again_after(world: World, agent: AgentSocket) -> None:
    go = asyncio.Event()
    await world.hold("c1", lambda message: go.wait())
    await agent.command("c1", "f", id="one")
    await agent.command("c1", "f", id="one")
    assert (await agent.answer("one"))["code"] == "conflict"
    go.set()
    await until(lambda: agent.all_received(type="response", id="one"))
    await agent.command("c1", "f", id="one")
    await until(lambda: len(agent.all_received(type="response", id="one")) == 2)


async def test_cancel_is_answered_at_once_and_reaches_the_gateway(world: World, agent: AgentSocket) -> None:
    await world.hold("c1", never)
    ident = await agent.command("c1", "f")
    await until(lambda: world.received())
    await agent.send({"type": "cancel", "id": ident})
    response = await agent.answer(ident)
    assert (response["status"], response["error"]["code"]) == ("error", "cancelled")
    (cancelled,) = await until(lambda: world.received("cancel"))
    assert cancelled["requestId"] == world.received()[0]["requestId"]


async def test_cancel_of_what_is_not_in_flight_is_nothing(world: World, agent: AgentSocket) -> None:
    await agent.send({"type": "cancel", "id": "unknown"})
    await agent.send({"type": "ping"})
    await agent.received(type="pong")
    assert len(agent.frames) == 1


async def test_closed_socket_cancels_its_commands(world: World, api: RunningApi) -> None:
    await world.hold("c1", never)
    async with agent_socket(api.url) as leaving:
        for _ in range(3):
            await leaving.command("c1", "f")
        await until(lambda: len(world.received()) == 3)
    await until(lambda: len(world.received("cancel")) == 3)


async def test_path_without_an_upgrade_says_what_to_do(api: RunningApi) -> None:
    async with http_client(api) as http:
        answer = await http.get("/api/ws")
        assert (answer.status_code, answer.json()["code"]) == (426, "invalid_request")
        assert answer.headers["upgrade"] == "websocket"
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
        assert (await http.post("/api/ws", headers=upgrade)).status_code == 405
        assert (await http.get("/api/clients", headers=upgrade)).status_code == httpx.codes.OK
