"""Commands over NATS to applications behind a real gateway."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import nats.errors
import pytest
from nats.aio.msg import Msg
from support.nats.raw_publish import raw_request
from support.played.app import App, AppFault, Handler, application, never
from support.processes.child import Process
from support.processes.gateways import Agent
from support.settings import agent_token, app_token
from support.wait import until

from protocol import subjects

ADD = {"name": "add", "parameters": {"required": ["a", "b"]}}
GUARDED = {"name": "guarded", "permissions": ["todo"]}


@pytest.fixture
async def app(gateway: Process) -> AsyncIterator[App]:
    """An application that adds, fails, echoes, and never answers `never`."""
    handlers: dict[str, Handler] = {"add": add, "fail": fail, "echo": echo, "never": never, "guarded": add}
    offered = [ADD, "fail", "echo", "never", GUARDED]
    async with application(gateway.url, handlers, capabilities=offered, app={"name": "todo"}) as connected:
        yield connected


def add(parameters: dict[str, Any]) -> int:
    total: int = parameters["a"] + parameters["b"]
    return total


def echo(parameters: dict[str, Any]) -> dict[str, Any]:
    return parameters


def fail(parameters: dict[str, Any]) -> None:
    raise AppFault(parameters.get("message", "no such task"), "E_TASK")


def waiting(caller: Agent, tasks: asyncio.TaskGroup, app: App, **more: Any) -> asyncio.Task[dict[str, Any]]:
    """Send a command that is never answered."""
    return tasks.create_task(caller.call(app.client_id, "never", **more))


async def reached(app: App, number: int = 1) -> list[dict[str, Any]]:
    """Wait until the application has so many commands, and return them."""
    await until(lambda: len(app.all_received(type="command")) >= number)
    return app.all_received(type="command")


async def executed_nothing_but(caller: Agent, app: App, *targets: str) -> None:
    """See that a command still comes through, and that the application has received these alone since it connected.

    Frames come in order, so whatever was sent to it before stands before this last one.
    """
    assert (await caller.call(app.client_id, "echo", {"still": "here"}))["result"] == {"still": "here"}
    assert [command["target"] for command in app.all_received(type="command")] == [*targets, "echo"]


# --- one command ---


async def test_command_is_answered(caller: Agent, app: App) -> None:
    answer = await caller.call(app.client_id, "add", {"a": 1, "b": 2}, action="call", requestId="mine", timeoutMs=1500)
    assert answer == {
        "requestId": "mine",
        "status": "success",
        "result": 3,
        "clientId": app.client_id,
        "durationMs": answer["durationMs"],
    }
    (frame,) = app.all_received(type="command")
    assert frame == {
        "type": "command",
        "requestId": frame["requestId"],
        "target": "add",
        "action": "call",
        "parameters": {"a": 1, "b": 2},
        "timeoutMs": frame["timeoutMs"],
        "agent": {"id": "agent-1"},
    }
    assert frame["requestId"] != "mine"
    assert 0 < frame["timeoutMs"] <= 1500  # what is left of it when the frame is sent


async def test_error_of_the_application_is_command_failed(caller: Agent, app: App) -> None:
    answer = await caller.call(app.client_id, "fail")
    assert answer["error"] == {
        "code": "command_failed",
        "message": "no such task",
        "retryable": False,
        "details": {"code": "E_TASK"},
    }


async def test_error_that_cannot_stand_in_a_header_reaches_the_caller_whole(caller: Agent, app: App) -> None:
    message = "zwei\r\nZeilen\x00 und ein é" + "x" * 500
    assert (await caller.call(app.client_id, "fail", {"message": message}))["error"]["message"] == message


async def test_application_that_does_not_answer_is_a_timeout_and_is_told(caller: Agent, app: App) -> None:
    answer = await caller.call(app.client_id, "never", timeoutMs=200)
    assert (answer["error"]["code"], answer["error"]["retryable"]) == ("timeout", False)
    (command,) = app.all_received(type="command")
    assert (await app.received(type="cancel"))["requestId"] == command["requestId"]
    await app.send({"type": "response", "requestId": command["requestId"], "status": "success", "result": 1})
    await executed_nothing_but(caller, app, "never")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_request"),
        (b"{", "invalid_request"),
        (b"\xff", "invalid_request"),
        (b"[]", "invalid_request"),
        (b"[" * 100_000, "invalid_request"),
        ({}, "invalid_request"),
        ({"target": ""}, "invalid_request"),
        ({"target": "echo", "parameters": []}, "invalid_request"),
        ({"target": "echo", "timeoutMs": 0}, "invalid_request"),
        ({"target": "echo", "timeoutMs": "1"}, "invalid_request"),
        ({"target": "echo", "requestId": "a b"}, "invalid_request"),
        ({"target": "echo", "requestId": "é"}, "invalid_request"),
        ({"target": "echo", "sentAt": -1}, "invalid_request"),
        ({"target": "echo", "arguments": {"a": 1}}, "invalid_request"),
        ({"target": "echo", "timeout_ms": 5}, "invalid_request"),
        ({"target": "echo", "idempotency_key": "k"}, "invalid_request"),
        ({"target": "echo", "OP": "cancel"}, "invalid_request"),
        ({"op": "claim", "target": "echo"}, "invalid_request"),
        ({"op": 7, "target": "echo"}, "invalid_request"),
        ({"op": "cancel"}, "invalid_request"),
        ({"op": "probe"}, "invalid_request"),
        ({"op": "probe", "requestIds": ["x"] * 257}, "invalid_request"),
        ({"target": "what"}, "unknown_capability"),
        ({"target": "add", "parameters": {"a": 1}}, "invalid_parameters"),
        ({"target": "guarded"}, "permission_denied"),
    ],
)
async def test_refused_operation_is_not_executed(caller: Agent, app: App, body: Any, code: str) -> None:
    assert await caller.refused(app.client_id, body) == code
    await executed_nothing_but(caller, app)


async def test_field_of_a_newer_caller_is_ignored(caller: Agent, app: App) -> None:
    answer = await caller.ask(app.client_id, {"target": "echo", "parameters": {"n": 1}, "traceparent": "t", "v": 2})
    assert answer["result"] == {"n": 1}


async def test_permission_opens_the_capability(caller: Agent, app: App) -> None:
    for granted in ("todo", "*"):
        token = agent_token(permissions=[granted])
        assert (await caller.call(app.client_id, "guarded", {"a": 1, "b": 1}, token=token))["result"] == 2


# --- tokens ---


@pytest.mark.parametrize(
    "op", [{"target": "echo"}, {"op": "cancel", "requestId": "r"}, {"op": "probe", "requestIds": []}]
)
@pytest.mark.parametrize(
    ("token", "code"),
    [
        (None, "unauthenticated"),
        ("nonsense", "unauthenticated"),
        (agent_token(audience="elsewhere"), "unauthenticated"),
        (app_token(), "permission_denied"),
        (agent_token(tenant="elsewhere"), "client_not_found"),
        (agent_token(limits={"users": ["user-2"]}), "client_not_found"),
        (agent_token(limits={"apps": ["other"]}), "client_not_found"),
        (agent_token(limits={"clients": []}), "client_not_found"),
    ],
)
async def test_token_that_may_not_is_refused_whatever_it_asks(
    caller: Agent, app: App, op: Any, token: str | None, code: str
) -> None:
    assert await caller.refused(app.client_id, op, token=token) == code
    await executed_nothing_but(caller, app)


async def test_limits_that_match_let_through(caller: Agent, app: App) -> None:
    limits = {"users": ["user-1"], "apps": ["todo"], "clients": [app.client_id]}
    assert (await caller.call(app.client_id, "echo", {"n": 1}, token=agent_token(limits=limits)))["result"] == {"n": 1}


async def test_subject_of_another_tenant_has_no_such_client(caller: Agent, app: App) -> None:
    with pytest.raises(nats.errors.NoRespondersError):
        await caller.call(app.client_id, "echo", tenant="elsewhere", token=agent_token(tenant="elsewhere"))


async def test_expired_token_may_cancel_and_probe_but_not_call(caller: Agent, app: App) -> None:
    expired = agent_token(ttl_seconds=-5)
    assert await caller.refused(app.client_id, {"target": "echo"}, token=expired) == "unauthenticated"
    async with asyncio.TaskGroup() as tasks:
        call = waiting(caller, tasks, app, requestId="r1")
        await reached(app)
        probe = {"op": "probe", "requestIds": ["r1"]}
        assert (await caller.ask(app.client_id, probe, token=expired))["inFlight"] == ["r1"]
        cancel = {"op": "cancel", "requestId": "r1"}
        assert await caller.ask(app.client_id, cancel, token=expired) == {"cancelled": True}
    assert call.result()["error"]["code"] == "cancelled"


# --- cancel, probe, in flight ---


async def test_cancel_reaches_the_application_and_answers_the_caller(caller: Agent, app: App) -> None:
    async with asyncio.TaskGroup() as tasks:
        call = waiting(caller, tasks, app, requestId="r1")
        (command,) = await reached(app)
        cancel = {"op": "cancel", "requestId": "r1", "reason": "enough"}
        assert await caller.ask(app.client_id, cancel) == {"cancelled": True}
        assert await caller.ask(app.client_id, cancel) == {"cancelled": False}
    assert (call.result()["error"]["code"], call.result()["error"]["retryable"]) == ("cancelled", False)
    frame = await app.received(type="cancel")
    assert frame == {"type": "cancel", "requestId": command["requestId"], "reason": "enough"}


async def test_cancel_without_a_reply_subject_is_done_too(caller: Agent, app: App) -> None:
    async with asyncio.TaskGroup() as tasks:
        call = waiting(caller, tasks, app, requestId="r1")
        await reached(app)
        await caller.tell(app.client_id, {"op": "cancel", "requestId": "r1"})
    assert call.result()["error"]["code"] == "cancelled"


async def test_another_principal_s_cancel_and_probe_have_no_effect(caller: Agent, app: App) -> None:
    other = agent_token("agent-2")
    async with asyncio.TaskGroup() as tasks:
        call = waiting(caller, tasks, app, requestId="r1", timeoutMs=500)
        await reached(app)
        cancelled = await caller.ask(app.client_id, {"op": "cancel", "requestId": "r1"}, token=other)
        assert cancelled == {"cancelled": False}
        probed = await caller.ask(app.client_id, {"op": "probe", "requestIds": ["r1"]}, token=other)
        assert probed == {"inFlight": [], "outcomes": [], "unknown": ["r1"]}
    assert call.result()["error"]["code"] == "timeout"


async def test_probe_tells_what_has_become_of_each_command(caller: Agent, app: App) -> None:
    done = await caller.call(app.client_id, "echo", {"n": 1}, requestId="done")
    failed = await caller.call(app.client_id, "fail", requestId="failed")
    async with asyncio.TaskGroup() as tasks:
        waiting(caller, tasks, app, requestId="running", timeoutMs=500)
        await reached(app, 3)
        probe = {"op": "probe", "requestIds": ["never-sent", "running", "failed", "done"]}
        answer = await caller.ask(app.client_id, probe)
    assert answer == {"inFlight": ["running"], "outcomes": [failed, done], "unknown": ["never-sent"]}


async def test_outcomes_that_do_not_fit_into_one_probe_come_with_the_next(caller: Agent, app: App) -> None:
    ids = [f"r{number}" for number in range(6)]
    for request_id in ids:
        await caller.call(app.client_id, "echo", {"x": "x" * 300_000}, requestId=request_id)
    left = ids
    async with asyncio.timeout(5):
        while left:
            answer = await caller.ask(app.client_id, {"op": "probe", "requestIds": left})
            assert answer["unknown"] == []
            assert answer["outcomes"]
            left = answer["inFlight"]


async def test_probe_never_overtakes_its_command(caller: Agent, app: App) -> None:
    probes = []
    async with asyncio.TaskGroup() as tasks:
        for number in range(50):
            waiting(caller, tasks, app, requestId=f"r{number}", timeoutMs=1000)
            probe = {"op": "probe", "requestIds": [f"r{number}"]}
            probes.append(tasks.create_task(caller.ask(app.client_id, probe)))
    assert [probe.result()["unknown"] for probe in probes] == [[]] * 50


async def test_request_id_in_flight_is_a_conflict(caller: Agent, app: App) -> None:
    async with asyncio.TaskGroup() as tasks:
        call = waiting(caller, tasks, app, requestId="r1", timeoutMs=500)
        await reached(app)
        assert await caller.refused(app.client_id, {"target": "echo", "requestId": "r1"}) == "conflict"
        token = agent_token("agent-2")
        other = await caller.call(app.client_id, "echo", requestId="r1", token=token)
        assert other["status"] == "success"
    assert call.result()["error"]["code"] == "timeout"
    assert (await caller.call(app.client_id, "echo", requestId="r1"))["status"] == "success"


async def test_65th_command_in_flight_is_overloaded(caller: Agent, app: App) -> None:
    async with asyncio.TaskGroup() as tasks:
        calls = [waiting(caller, tasks, app, requestId=f"r{number}") for number in range(64)]
        await reached(app, 64)
        reply = await caller.ask(app.client_id, {"target": "echo"})
        assert (reply["error"]["code"], reply["error"]["retryable"]) == ("overloaded", True)
        await caller.ask(app.client_id, {"op": "cancel", "requestId": "r7"})
        await executed_nothing_but(caller, app, *["never"] * 64)
        await app.socket.close()
    assert [call.result()["error"]["code"] for call in calls].count("client_lost") == 63


# --- replies ---


@pytest.mark.parametrize(
    "reply",
    [
        "agentbridge.default.event.c.forged",
        "elsewhere",
        "_INBOX.*",
        "_INBOX.>",
        "_INBOX.a.*.b",
        "_INBOX..a",
        "$SRV.PING",
    ],
)
@pytest.mark.parametrize("op", [{"target": "add"}, {"target": "echo"}, {"op": "probe", "requestIds": []}])
async def test_reply_subject_that_is_no_inbox_gets_nothing_and_nothing_is_executed(
    caller: Agent, app: App, reply: str, op: Any
) -> None:
    heard: list[Msg] = []

    async def hear(msg: Msg) -> None:
        heard.append(msg)

    for subject in ("agentbridge.>", "elsewhere", "_INBOX.a.>"):
        await caller.nats.subscribe(subject, cb=hear)
    await caller.tell(app.client_id, op, reply=reply)
    await executed_nothing_but(caller, app)
    kinds = (".command.", ".audit.", "._registry.")  # what the gateway says by itself
    assert [msg.subject for msg in heard if not any(kind in msg.subject for kind in kinds)] == []


async def test_command_without_a_reply_subject_is_not_executed(caller: Agent, app: App) -> None:
    await caller.tell(app.client_id, {"target": "echo"})
    await executed_nothing_but(caller, app)


# --- the client goes ---


async def test_closed_socket_is_client_lost_to_every_caller_before_any_timeout(caller: Agent, app: App) -> None:
    """Long before the command's own timeout, which is thirty seconds: these requests wait for five."""
    async with asyncio.TaskGroup() as tasks:
        calls = [waiting(caller, tasks, app) for _ in range(3)]
        await reached(app, 3)
        await app.socket.close()
    assert [call.result()["error"]["code"] for call in calls] == ["client_lost"] * 3
    assert [call.result()["error"]["retryable"] for call in calls] == [False] * 3


async def test_client_that_has_gone_is_not_found_and_then_nobody_s(caller: Agent, app: App) -> None:
    await caller.call(app.client_id, "echo", requestId="r1")
    await app.socket.close()
    assert await caller.refused(app.client_id, {"target": "echo"}) == "client_not_found"
    probe = await caller.ask(app.client_id, {"op": "probe", "requestIds": ["r1"]})
    assert [outcome["requestId"] for outcome in probe["outcomes"]] == ["r1"]

    async def nobody() -> bool:
        try:
            await caller.call(app.client_id, "echo")
        except nats.errors.NoRespondersError:
            return True
        return False

    await until(nobody)


async def test_client_whose_connection_broke_is_unavailable_to_those_who_may_see_it(caller: Agent, app: App) -> None:
    async with asyncio.TaskGroup() as tasks:
        call = waiting(caller, tasks, app)
        await reached(app)
        app.socket.transport.abort()
    assert call.result()["error"]["code"] == "client_lost"
    for key in (None, "k"):
        answer = await caller.ask(app.client_id, {"target": "echo", "idempotencyKey": key})
        assert (answer["error"]["code"], answer["error"]["retryable"]) == ("unavailable", True)
    others = agent_token(limits={"users": ["user-2"]})
    assert await caller.refused(app.client_id, {"target": "echo"}, token=others) == "client_not_found"


async def test_oversized_frame_costs_its_own_client_only(gateway: Process, caller: Agent, app: App) -> None:
    async with application(gateway.url, {"never": never}) as loud, asyncio.TaskGroup() as tasks:
        call = waiting(caller, tasks, loud)
        other = waiting(caller, tasks, app, requestId="r1")
        await reached(loud)
        await reached(app)
        await loud.send("x" * (960 * 1024 + 1))
        assert await loud.closed() == 1009
        assert (await call)["error"]["code"] == "client_lost"
        assert (await caller.ask(app.client_id, {"op": "cancel", "requestId": "r1"})) == {"cancelled": True}
        assert (await other)["error"]["code"] == "cancelled"


# --- sizes and times ---


async def test_largest_parameters_and_results_come_through(caller: Agent, app: App) -> None:
    text = "x" * 900_000
    assert (await caller.call(app.client_id, "echo", {"text": text}))["result"] == {"text": text}


async def test_answer_that_grows_beyond_what_nats_takes_is_told(caller: Agent, app: App) -> None:
    """Five bytes of JSON on the socket, eighteen when they are written again."""
    async with asyncio.TaskGroup() as tasks:
        call = waiting(caller, tasks, app)
        (command,) = await reached(app)
        details = ",".join(["1e15"] * 150_000)
        await app.send(
            f'{{"type":"response","requestId":"{command["requestId"]}","status":"error","error":{{"details":[{details}]}}}}'
        )
    assert call.result()["error"]["code"] == "payload_too_large"
    await executed_nothing_but(caller, app, "never")


@pytest.mark.parametrize(("late_ms", "executed"), [(1000, True), (1500, True), (2500, False), (60_000, False)])
async def test_command_past_its_deadline_is_not_executed(caller: Agent, app: App, late_ms: int, executed: bool) -> None:
    body = {"target": "echo", "timeoutMs": 1000, "sentAt": int(time.time() * 1000) - 1000 - late_ms}
    answer = await caller.ask(app.client_id, body)
    assert answer.get("error", {"code": "success"})["code"] == ("success" if executed else "timeout")
    assert len(await app.commands()) == executed


async def test_registered_anew_is_what_counts(caller: Agent, app: App) -> None:
    await app.register(["other"])
    assert await caller.refused(app.client_id, {"target": "echo"}) == "unknown_capability"
    refused = await app.acknowledged({"type": "capability", "capabilities": [f"echo{number}" for number in range(501)]})
    assert (refused["code"], "details" in refused) == ("invalid_frame", False)
    assert await caller.refused(app.client_id, {"target": "echo"}) == "unknown_capability"
    app.handlers["other"] = lambda parameters: "other"
    assert (await caller.call(app.client_id, "other"))["result"] == "other"


async def test_statistics_of_the_gateway_are_answered(caller: Agent, app: App, gateway: Process) -> None:
    reply = await caller.nats.request("$SRV.INFO.agentbridge-gateway", b"", timeout=5)
    info = json.loads(reply.data)
    assert info["metadata"]["gatewayId"].startswith("gw-")
    assert {endpoint["name"] for endpoint in info["endpoints"]} == {"ping", "sync", "disconnect"}


async def test_header_of_the_token_is_found_in_any_case(caller: Agent, app: App) -> None:
    """HTTP-minded clients write header names in lower case, to every endpoint alike."""
    found = json.loads((await caller.nats.request("$SRV.INFO.agentbridge-gateway", b"", timeout=5)).data)
    subject = subjects.gateway(found["metadata"]["gatewayId"], "disconnect")
    body = json.dumps({"tenant": "default", "clientId": app.client_id}).encode()
    for name in ("authorization", "AUTHORIZATION"):
        reply = await caller.nats.request(subject, body, timeout=5, headers={name: f"Bearer {agent_token()}"})
        assert json.loads(reply.data)["error"]["code"] == "permission_denied"
        command = subjects.command("default", app.client_id)
        headers = {name: f"Bearer {agent_token()}"}
        reply = await caller.nats.request(command, b'{"target": "echo"}', timeout=5, headers=headers)
        assert json.loads(reply.data)["status"] == "success"


@pytest.mark.parametrize("second", ["Authorization", "authorization"])
async def test_two_tokens_of_a_message_are_refused_at_every_endpoint(
    shared_nats_url: str, caller: Agent, app: App, gateway: Process, second: str
) -> None:
    """Who reads the first and who reads the second would take the message for different agents'."""
    found = json.loads((await caller.nats.request("$SRV.INFO.agentbridge-gateway", b"", timeout=5)).data)
    disconnect = subjects.gateway(found["metadata"]["gatewayId"], "disconnect")
    headers = [f"Authorization: Bearer {agent_token()}", f"{second}: Bearer {agent_token('another')}"]
    body = json.dumps({"tenant": "default", "clientId": app.client_id, "target": "echo"}).encode()
    for subject in (disconnect, subjects.command("default", app.client_id)):
        error = (await raw_request(shared_nats_url, subject, headers, body))["error"]
        told = "there are two Authorization headers with a token; send one"
        assert (error["code"], error["message"]) == ("unauthenticated", told)
    await executed_nothing_but(caller, app)
    assert "Traceback" not in gateway.log
