"""What applications answer, at a real gateway: an answer that cannot be read ends its command at once, and says why."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.nats.nats_server import NatsServer
from support.played.app import application, socket_of
from support.played.running_gateway import running_gateway
from support.processes.gateways import Agent, agent
from support.settings import app_token
from websockets.asyncio.client import ClientConnection

from protocol.runtime.commands.audit_log import AuditLog

MAX_MESSAGE_BYTES = 20_000


@pytest.fixture
async def app(private_nats: NatsServer) -> AsyncIterator[ClientConnection]:
    async with (
        running_gateway(private_nats.url, max_message_bytes=MAX_MESSAGE_BYTES) as url,
        socket_of(url, app_token()) as socket,
    ):
        yield socket


@pytest.fixture
async def caller(private_nats: NatsServer) -> AsyncIterator[Agent]:
    async with agent(private_nats.url) as connected:
        yield connected


async def heard(app: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(10):
        frame: dict[str, Any] = json.loads(await app.recv())
    return frame


async def registered(app: ClientConnection, *capabilities: object) -> str:
    connection = await heard(app)
    await app.send(json.dumps({"type": "capability", "capabilities": capabilities, "id": "c"}))
    assert (await heard(app))["type"] == "ack"
    return str(connection["clientId"])


async def answered(app: ClientConnection, caller: Agent, answer: str | bytes) -> tuple[dict[str, Any], str]:
    """Return how a command ends to which this is the answer, with `ID` for its id, and that id."""
    client_id = await registered(app, "read")
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(caller.call(client_id, "read", timeoutMs=60_000, seconds=10))
        request_id = (await heard(app))["requestId"]
        await app.send(
            answer.replace("ID", request_id) if isinstance(answer, str) else answer.replace(b"ID", request_id.encode())
        )
    return call.result(), request_id


UNREADABLE = {
    "NaN": '{"type":"response","requestId":"ID","status":"success","result":NaN}',
    "nested deeply": '{"type":"response","requestId":"ID","status":"success","result":' + "[" * 5000 + "]" * 5000 + "}",
    "no status": '{"type":"response","requestId":"ID","result":1}',
    "error is a list": '{"type":"response","requestId":"ID","status":"error","error":["no"]}',
    "code 1.5": '{"type":"response","requestId":"ID","status":"error","error":{"message":"no","code":1.5}}',
    "a misspelt id": '{"type":"response","request_id":"ID","status":"success","result":1}',
    "250 digits and an exponent": '{"type":"response","requestId":"ID","status":"success","result":["'
    f'{"x" * 2000}",{"9" * 250}e99]}}',
    "1e400": '{"type":"response","requestId":"ID","status":"success","result":[1e400]}',
    "binary": b'{"type":"response","requestId":"ID","status":"success","result":1}',
}


@pytest.mark.parametrize("answer", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_unreadable_answer_ends_its_command_at_once(
    app: ClientConnection, caller: Agent, answer: str | bytes
) -> None:
    outcome, request_id = await answered(app, caller, answer)
    assert (outcome["error"]["code"], outcome["error"]["details"]) == ("command_failed", {"code": "invalid_response"})
    told = await heard(app)
    assert (told["type"], told["code"], told["requestId"]) == ("error", "invalid_frame", request_id)


async def test_half_a_surrogate_pair_is_read(app: ClientConnection, caller: Agent) -> None:
    answer = r'{"type":"response","requestId":"ID","status":"success","result":"cut \ud83d"}'
    outcome, _ = await answered(app, caller, answer)
    assert outcome["result"] == "cut \ufffd"


async def test_answer_above_the_limit_is_told_with_the_limit(app: ClientConnection, caller: Agent) -> None:
    large = "x" * MAX_MESSAGE_BYTES
    outcome, _ = await answered(
        app, caller, f'{{"type":"response","requestId":"ID","status":"success","result":"{large}"}}'
    )
    assert outcome["error"]["code"] == "client_lost"
    assert outcome["error"]["details"] == {"code": "message_too_large", "maxMessageBytes": MAX_MESSAGE_BYTES}


async def test_connection_frame_tells_the_limits(app: ClientConnection) -> None:
    assert (await heard(app))["limits"] == {"maxMessageBytes": MAX_MESSAGE_BYTES, "pingIntervalSeconds": 25.0}


async def test_odd_capability_is_left_out_and_the_others_can_be_called(app: ClientConnection, caller: Agent) -> None:
    client_id = str((await heard(app))["clientId"])
    odd = [{"name": "wipe", "permission": ["admin"]}, {"name": "bad", "inputSchema": {"type": "what"}}]
    good = {"name": "checked", "inputSchema": {"type": "object", "required": ["a"]}}
    await app.send(json.dumps({"type": "capability", "capabilities": [*odd, "echo", good]}))
    told = await heard(app)
    assert (told["type"], told["details"]["registered"]) == ("error", 2)
    assert [one["name"] for one in told["details"]["refused"]] == ["wipe", "bad"]
    assert await caller.refused(client_id, {"target": "wipe"}) == "unknown_capability"
    assert await caller.refused(client_id, {"target": "checked"}) == "invalid_parameters"
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(caller.call(client_id, "echo"))
        request_id = (await heard(app))["requestId"]
        await app.send(json.dumps({"type": "response", "requestId": request_id, "status": "success", "result": 1}))
    assert call.result()["result"] == 1


async def test_number_that_applications_cannot_read_is_no_parameter(app: ClientConnection, caller: Agent) -> None:
    client_id = await registered(app, "read", {"name": "checked", "parameters": {"type": "object"}})
    for target in ("read", "checked"):
        for number in ("1e400", "9" * 5000):
            body = f'{{"target":"{target}","parameters":{{"a":{number}}}}}'
            assert await caller.refused(client_id, body.encode()) == "invalid_parameters"


def echo(parameters: dict[str, Any]) -> dict[str, Any]:
    return parameters


async def test_a_probe_is_not_told_an_outcome_before_its_record_has_left(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage: the record waits behind others for some milliseconds, and the caller asks what became of it."""
    async with (
        running_gateway(private_nats.url) as url,
        application(url, {"echo": echo}) as app,
        agent(private_nats.url) as caller,
    ):
        done = await caller.call(app.client_id, "echo", requestId="done")
        probe = {"op": "probe", "requestIds": ["done", "never-sent"]}
        with monkeypatch.context() as behind:
            behind.setattr(AuditLog, "is_behind", property(lambda log: True))
            answer = await caller.ask(app.client_id, probe)
        assert answer == {"inFlight": ["done"], "outcomes": [], "unknown": ["never-sent"]}
        assert (await caller.ask(app.client_id, probe))["outcomes"] == [done]
