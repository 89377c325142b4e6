"""An agent with nothing but a NATS client: no library of ours, no agent API."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from support.processes.bridge import Bridge
from support.settings import agent_token, app_token, bearer
from support.wait import subscribed


@pytest.fixture
async def plain(bridge: Bridge) -> AsyncIterator[Client]:
    """A plain connection to the bridge's NATS."""
    client = await nats.connect(bridge.nats_url)
    yield client
    await client.close()


def echo(parameters: dict[str, Any]) -> dict[str, Any]:
    """Answer with what was asked."""
    return parameters


async def _request(plain: Client, client_id: str, token: str | None, body: dict[str, Any]) -> Msg:
    headers = bearer(token) if token else None
    return await plain.request(
        f"agentbridge.default.command.{client_id}", json.dumps(body).encode(), timeout=5, headers=headers
    )


async def test_request_with_a_token_is_answered(bridge: Bridge, plain: Client) -> None:
    async with bridge.app({"echo": echo}) as app:
        body = {"target": "echo", "parameters": {"n": 1}, "requestId": "mine-1"}
        reply = await _request(plain, app.client_id, agent_token(), body)
    answer = json.loads(reply.data)
    assert answer == {
        "requestId": "mine-1",
        "status": "success",
        "result": {"n": 1},
        "clientId": app.client_id,
        "durationMs": answer["durationMs"],
    }


async def test_request_without_a_token_is_refused_with_the_headers_of_micro_services(
    bridge: Bridge, plain: Client
) -> None:
    async with bridge.app({"echo": echo}) as app:
        reply = await _request(plain, app.client_id, None, {"target": "echo"})
        assert await app.commands() == []
    assert reply.headers is not None
    assert reply.headers["Nats-Service-Error-Code"] == "unauthenticated"
    assert json.loads(reply.data)["error"]["code"] == "unauthenticated"


async def test_application_is_no_agent(bridge: Bridge, plain: Client) -> None:
    async with bridge.app({"echo": echo}) as app:
        reply = await _request(plain, app.client_id, app_token(), {"target": "echo"})
    assert json.loads(reply.data)["error"]["code"] == "permission_denied"


async def test_unknown_client_has_no_responders_at_once(bridge: Bridge, plain: Client) -> None:
    async with asyncio.timeout(1):
        with pytest.raises(nats.errors.NoRespondersError):
            await _request(plain, "nobody", agent_token(), {"target": "echo"})


async def test_subscriber_sees_the_applications_events_and_the_changes_of_clients(
    bridge: Bridge, plain: Client
) -> None:
    events = await plain.subscribe("agentbridge.default.event.>")
    changes = await plain.subscribe("agentbridge.default.client.>")
    await subscribed(plain)
    async with bridge.app({"echo": echo}, app={"name": "todo"}) as app:
        await app.send({"type": "event", "event": "todo.added", "source": "list", "data": {"title": "Milk"}})
        event = await events.next_msg(timeout=5)
        connected = await changes.next_msg(timeout=5)
    seen = json.loads(event.data)
    assert event.subject == f"agentbridge.default.event.{app.client_id}.todo%2Eadded"
    assert {**seen, "at": "?"} == {
        "event": "todo.added",
        "clientId": app.client_id,
        "user": "user-1",
        "app": "todo",
        "at": "?",
        "source": "list",
        "data": {"title": "Milk"},
    }
    assert connected.subject == f"agentbridge.default.client.{app.client_id}.connected"
    names = [json.loads((await changes.next_msg(timeout=5)).data)["change"] for _ in range(1)]
    while names[-1] != "disconnected":
        names.append(json.loads((await changes.next_msg(timeout=5)).data)["change"])
    assert set(names) <= {"updated", "disconnected"}


async def test_reply_subject_that_is_no_inbox_executes_nothing(bridge: Bridge, plain: Client) -> None:
    forged = await plain.subscribe("agentbridge.default.event.>")
    async with bridge.app({"echo": echo}) as app:
        subject = f"agentbridge.default.command.{app.client_id}"
        body = json.dumps({"target": "echo"}).encode()
        for reply in ("agentbridge.default.event.x.forged", "_INBOX.*", "_INBOX.a.>", "_INBOX." + "x" * 300, "answers"):
            await plain.publish(subject, body, reply=reply, headers=bearer(agent_token()))
        answer = await _request(plain, app.client_id, agent_token(), {"target": "echo", "parameters": {"last": True}})
    assert json.loads(answer.data)["status"] == "success"
    assert [frame["parameters"] for frame in app.all_received(type="command")] == [{"last": True}]
    assert forged.pending_msgs == 0
