"""Agents limited by their tokens, and agents of other tenants: nowhere do they see what is not theirs.

What may not be seen is refused in the very words that are used for what does not exist.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx
import nats
import nats.errors
import pytest
from nats.aio.client import Client
from support.played.app import App, Handler, never
from support.processes.bridge import Bridge
from support.settings import agent_token, app_token, bearer

ANN, BOB = agent_token("ann-agent", limits={"users": ["ann"]}), agent_token("bob-agent", limits={"apps": ["board"]})
STRANGER = agent_token("stranger", tenant="acme")
EVERYBODY = agent_token("everybody")


class World(NamedTuple):
    """Ann's to-do list and Bob's board in the default tenant, and somebody's to-do list in another."""

    bridge: Bridge
    ann: App
    bob: App
    acme: App


def echo(parameters: dict[str, Any]) -> dict[str, Any]:
    """Answer with what was asked."""
    return parameters


@pytest.fixture
async def world(bridge: Bridge) -> AsyncIterator[World]:
    """A bridge with clients of two users and two tenants."""
    handlers: dict[str, Handler] = {"echo": echo, "never": never}
    async with contextlib.AsyncExitStack() as stack:
        apps = [
            await stack.enter_async_context(
                bridge.app(handlers, token=app_token(user, tenant=tenant), app={"name": name}, metadata={"team": "x"})
            )
            for user, tenant, name in (("ann", None, "todo"), ("bob", None, "board"), ("ann", "acme", "todo"))
        ]
        built = World(bridge, *apps)
        http = bridge.client(EVERYBODY)
        await bridge.listed(built.ann.client_id, built.bob.client_id)
        assert (await http.get("/api/clients")).status_code == httpx.codes.OK
        yield built


def theirs(world: World) -> list[tuple[str, App, list[App]]]:
    """Return each agent's token, the client that it may see, and those that it may not."""
    return [
        (ANN, world.ann, [world.bob, world.acme]),
        (BOB, world.bob, [world.ann, world.acme]),
        (STRANGER, world.acme, [world.ann, world.bob]),
    ]


async def test_lists_hold_what_is_theirs(world: World) -> None:
    for token, own, _ in theirs(world):
        http = world.bridge.client(token)
        assert list((await http.get("/api/capabilities")).json()) == [own.client_id]
        records = (await http.get("/api/clients", params={"metadata.team": "x"})).json()
        assert [record["clientId"] for record in records] == [own.client_id]
        assert (await http.get(f"/api/clients/{own.client_id}")).status_code == httpx.codes.OK


async def test_routes_refuse_the_rest_as_if_it_did_not_exist(world: World) -> None:
    for token, _, others in theirs(world):
        http = world.bridge.client(token)
        for client_id in [other.client_id for other in others]:
            routes: tuple[tuple[str, dict[str, str]], ...] = (
                (f"/api/clients/{client_id}", {}),
                ("/api/clients", {"clientId": client_id}),
                ("/api/capabilities", {"clientId": client_id}),
            )
            for path, query in routes:
                hidden = await http.get(path, params=query)
                absent = await http.get(path.replace(client_id, "absent"), params=dict.fromkeys(query, "absent"))
                assert (hidden.status_code, hidden.content) == (absent.status_code, absent.content)


async def test_commands_reach_what_is_theirs_and_nothing_else(world: World) -> None:
    for token, own, others in theirs(world):
        http = world.bridge.client(token)
        assert (await _post(http, {"command": {"target": "echo", "parameters": {}}})).json()[
            "clientId"
        ] == own.client_id
        refused = [await _post(http, _command(client_id)) for client_id in [*(o.client_id for o in others), "absent"]]
        bodies = [{**answer.json(), "requestId": "?"} for answer in refused]
        assert {answer.status_code for answer in refused} == {httpx.codes.NOT_FOUND}
        assert bodies == [bodies[-1]] * len(bodies)
    executed = {app.client_id: len(app.all_received(type="command")) for app in world[1:]}
    assert executed == {world.ann.client_id: 1, world.bob.client_id: 1, world.acme.client_id: 1}


async def test_subjects_refuse_the_rest_as_if_it_did_not_exist(world: World) -> None:
    client = await nats.connect(world.bridge.nats_url)
    operations = (
        {"target": "echo", "requestId": "r"},
        {"op": "cancel", "requestId": "r"},
        {"op": "probe", "requestIds": ["r"]},
    )
    try:
        for token, _, others in theirs(world):
            for other in others:
                for tenant in ("default", "acme"):
                    for operation in operations:
                        subject = f"agentbridge.{tenant}.command.{other.client_id}"
                        assert await _code(client, subject, operation, token) in ("client_not_found", "no responders")
            for tenant in {"default", "acme"} - {_tenant(token)}:
                assert await _ask(client, f"agentbridge.{tenant}.registry.list", {}, token) == {"clients": []}
    finally:
        await client.close()
    assert [await app.commands() for app in world[1:]] == [[], [], []]


async def test_registry_answers_with_what_is_theirs(world: World) -> None:
    client = await nats.connect(world.bridge.nats_url)
    try:
        for token, own, others in theirs(world):
            prefix = f"agentbridge.{_tenant(token)}.registry"
            listed = await _ask(client, f"{prefix}.list", {}, token)
            found = await _ask(client, f"{prefix}.find", {"target": "echo"}, token)
            for answer in (listed, found):
                assert [record["clientId"] for record in answer["clients"]] == [own.client_id]
            for client_id in [*(other.client_id for other in others), "absent"]:
                refused = await _ask(client, f"{prefix}.get", {"clientId": client_id}, token)
                assert refused["error"]["code"] == "client_not_found"
    finally:
        await client.close()


async def test_other_principals_command_can_neither_be_cancelled_nor_probed(world: World) -> None:
    client = await nats.connect(world.bridge.nats_url)
    subject = f"agentbridge.default.command.{world.ann.client_id}"
    replies = await client.subscribe("_INBOX.waiting")
    try:
        body = json.dumps({"target": "never", "requestId": "secret"}).encode()
        await client.publish(subject, body, reply="_INBOX.waiting", headers=bearer(ANN))
        await world.ann.received(type="command", target="never")
        cancelled = await _ask(client, subject, {"op": "cancel", "requestId": "secret"}, EVERYBODY)
        probed = await _ask(client, subject, {"op": "probe", "requestIds": ["secret"]}, EVERYBODY)
        own = await _ask(client, subject, {"op": "probe", "requestIds": ["secret"]}, ANN)
        assert (cancelled, probed["unknown"], own["inFlight"]) == ({"cancelled": False}, ["secret"], ["secret"])
        assert replies.pending_msgs == 0
        assert await _ask(client, subject, {"op": "cancel", "requestId": "secret"}, ANN) == {"cancelled": True}
        assert json.loads((await replies.next_msg(timeout=5)).data)["error"]["code"] == "cancelled"
    finally:
        await client.close()


def _command(client_id: str) -> dict[str, Any]:
    return {"clientId": client_id, "command": {"target": "echo", "parameters": {}}}


async def _post(http: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    return await http.post("/api/command", json=body)


async def _ask(client: Client, subject: str, body: dict[str, Any], token: str) -> dict[str, Any]:
    reply = await client.request(subject, json.dumps(body).encode(), timeout=5, headers=bearer(token))
    answer: dict[str, Any] = json.loads(reply.data)
    return answer


async def _code(client: Client, subject: str, body: dict[str, Any], token: str) -> str:
    try:
        answer = await _ask(client, subject, body, token)
    except nats.errors.NoRespondersError:
        return "no responders"
    return str(answer["error"]["code"]) if "error" in answer else "success"


def _tenant(token: str) -> str:
    return "acme" if token == STRANGER else "default"
