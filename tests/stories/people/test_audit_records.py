"""What is recorded of commands: each outcome once by whoever decided it, and nothing that is nobody's business."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.nats.audit import Record, recorded, statistics, stored
from support.nats.nats_server import NatsServer
from support.nats.stores import AUDIT_STREAM
from support.played.agent_socket import agent_socket
from support.played.app import AppFault, Handler, never
from support.processes.bridge import Bridge, running_bridge
from support.processes.gateways import agent
from support.settings import agent_token, app_token
from support.wait import until

from protocol import subjects
from protocol.errors import Code
from protocol.runtime.streams.stores import audit_of

OFFERED: list[Any] = [
    "echo",
    "fail",
    "never",
    {"name": "guarded", "permissions": ["todo"]},
    {"name": "strict", "parameters": {"required": ["x"]}},
    {"name": "rare", "rateLimit": {"limit": 1, "perSeconds": 3600}},
]
STRANGERS = audit_of(subjects.STRANGERS).stream
SECRET_PARAMETER = "my-password-4711"


def echo(parameters: dict[str, Any]) -> dict[str, Any]:
    return parameters


def fail(parameters: dict[str, Any]) -> None:
    raise AppFault(f"no such user {SECRET_PARAMETER}", "E_USER")


HANDLERS: dict[str, Handler] = {"echo": echo, "fail": fail, "never": never, "rare": echo}


@pytest.fixture
async def small(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Bridge]:
    """A bridge whose clients take two commands at once, and bodies of a few kilobytes."""
    folder = tmp_path / "bridge"
    limits = {"max_in_flight_per_client": 2, "max_message_bytes": 64 * 1024}
    async with running_bridge(folder, private_nats.url, **limits) as running:
        yield running


def outcomes(records: list[Record]) -> Counter[tuple[str, str]]:
    return Counter((record["by"], record["outcome"]) for record in records)


async def test_a_record_says_who_asked_whom_for_what_and_how_it_ended(bridge: Bridge) -> None:
    async with bridge.app(HANDLERS, token=app_token("ann"), app={"name": "todo"}) as app:
        answer = await bridge.call(app.client_id, "echo", {"x": 1}, requestId="mine")
        [(subject, record)] = await until(lambda: stored(bridge.nats_url))

    assert subject == f"agentbridge.default.audit.{app.client_id}.success"
    assert record == {
        "at": record["at"],
        "tenant": "default",
        "clientId": app.client_id,
        "user": "ann",
        "app": "todo",
        "agent": "agent-1",
        "role": "agent",
        "target": "echo",
        "action": "call",
        "requestId": "mine",
        "outcome": "success",
        "durationMs": answer.json()["durationMs"],
        "by": "gateway",
    }


@pytest.mark.parametrize("key", [{}, {"idempotencyKey": "k1"}])
async def test_a_record_says_that_the_user_was_asked(bridge: Bridge, key: dict[str, Any]) -> None:
    async with bridge.app({"ask": never}) as app, asyncio.TaskGroup() as tasks:
        calling = tasks.create_task(bridge.call(app.client_id, "ask", **key))
        command = await app.received(type="command", target="ask")
        answer = {"requestId": command["requestId"], "status": "success", "result": 1, "confirmed": "user"}
        await app.send({"type": "response", **answer})
        assert (await calling).status_code == httpx.codes.OK
    [(_, record)] = await until(lambda: stored(bridge.nats_url))
    assert record["confirmed"] == "user"


async def refuse_everything(bridge: Bridge, client_id: str, twin_id: str) -> Counter[tuple[str, str]]:
    """Cause every refusal that there is, and return who decides how many of which."""
    caused: Counter[tuple[str, str]] = Counter()

    def gateway(outcome: str) -> None:
        caused["gateway", outcome] += 1

    def api(outcome: str) -> None:
        caused["agent_api", outcome] += 1

    async def post(status: int, body: Any = None, token: str | None = None, **how: Any) -> httpx.Response:
        http = bridge.client(token or agent_token())
        answer = await http.post("/api/command", **({"json": body} if how == {} else how))
        assert answer.status_code == status, answer.text
        return answer

    def to(target: str, **more: Any) -> dict[str, Any]:
        fields = {name: more.pop(name) for name in ("parameters", "requestId", "idempotencyKey") if name in more}
        return {"clientId": client_id, "command": {"target": target, **fields}, **more}

    await post(200, to("echo"))
    gateway("success")
    await post(500, to("fail", parameters={"user": SECRET_PARAMETER}))
    gateway("command_failed")
    await post(504, to("never", timeoutMs=50))
    gateway("timeout")
    await post(404, to("unknown"))
    gateway("unknown_capability")
    await post(403, to("guarded"))
    gateway("permission_denied")
    await post(422, to("strict", parameters={"y": SECRET_PARAMETER}))
    gateway("invalid_parameters")
    await post(200, to("rare"))
    gateway("success")
    await post(429, to("rare"))
    gateway("rate_limited")
    await post(404, to("echo"), agent_token("bob-agent", limits={"users": ["bob"]}))
    gateway("client_not_found")

    await post(404, {"clientId": "nobody", "command": {"target": "echo"}})
    api("client_not_found")
    await post(404, {"clientId": "no.body", "command": {"target": "echo"}})
    api("client_not_found")
    await post(409, {"command": {"target": "echo"}})
    api("ambiguous_client")
    await post(404, {"command": {"target": "unknown"}})
    api("unknown_capability")
    await post(400, {"clientId": client_id, "command": {"target": ""}})
    api("invalid_request")
    await post(400, content=b"{", headers={"Content-Type": "application/json"})
    api("invalid_request")
    await post(415, content=b"{}", headers={"Content-Type": "text/plain"})
    api("invalid_request")
    await post(413, to("echo", parameters={"x": "y" * 70_000}))
    api("payload_too_large")
    await post(403, to("echo"), app_token())
    api("permission_denied")

    await post(401, to("echo"), "eyJ.not-a.token")  # nobody's tenant: no record

    assert (await post(200, to("echo", idempotencyKey="k1"))).status_code == httpx.codes.OK
    gateway("success")
    await post(200, to("echo", idempotencyKey="k1"))  # remembered
    api("success")
    await post(409, to("fail", idempotencyKey="k1"))
    api("conflict")

    for key in (None, "k2"):
        command = {"target": "echo", "idempotencyKey": key}
        several = await post(200, {"clientIds": [client_id, twin_id, "gone", "no.id"], "command": command})
        assert len(several.json()["results"]) == 4
        gateway("success")
        gateway("success")
        api("client_not_found")
        api("client_not_found")
    await post(200, {"clientIds": [client_id, twin_id, "gone"], "command": command})
    api("success")  # remembered
    api("success")
    api("client_not_found")

    async with agent(bridge.nats_url) as direct, asyncio.TaskGroup() as tasks:
        assert await direct.refused(client_id, {"target": "echo"}, token=None) == "unauthenticated"
        gateway("unauthenticated")
        assert await direct.refused(client_id, b"{") == "invalid_request"
        gateway("invalid_request")
        await direct.tell(client_id, {"target": "echo"})  # without a reply subject
        gateway("invalid_request")
        await direct.tell(client_id, {"target": "echo"}, reply="agentbridge.default.event.x.y")
        gateway("invalid_request")
        waiting = [
            tasks.create_task(direct.call(client_id, "never", requestId=request_id)) for request_id in ("r1", "r2")
        ]
        await until(lambda: in_flight(bridge, 2))
        assert await direct.refused(client_id, {"target": "echo"}) == "overloaded"
        gateway("overloaded")
        assert await direct.refused(client_id, {"target": "echo", "requestId": "r1"}) == "conflict"
        gateway("conflict")
        for request_id in ("r1", "r2"):  # neither a cancel nor a probe is a command
            await direct.ask(client_id, {"op": "probe", "requestIds": [request_id]})
            assert (await direct.ask(client_id, {"op": "cancel", "requestId": request_id}))["cancelled"]
            gateway("cancelled")
        await asyncio.wait(waiting)
    return caused


async def in_flight(bridge: Bridge, number: int) -> bool:
    return (await statistics(bridge.nats_url, "agentbridge-gateway"))["commandsInFlight"] == number


async def test_every_outcome_is_recorded_once_by_whoever_decided_it(small: Bridge) -> None:
    async with small.app(HANDLERS, capabilities=OFFERED) as app, small.app(HANDLERS, capabilities=["echo"]) as twin:
        await small.listed(app.client_id, twin.client_id)
        caused = await refuse_everything(small, app.client_id, twin.client_id)

        async def everywhere() -> list[Record]:
            """Before a token was read nobody knows whose a command was: such records are in a stream of their own."""
            strangers = await stored(small.nats_url, STRANGERS)
            assert all("agent" not in record for _, record in strangers)
            found = [record for _, record in [*await stored(small.nats_url), *strangers]]
            return found if len(found) >= caused.total() else []

        records = await until(everywhere, 20)

    assert outcomes(records) == caused
    counted = await statistics(small.nats_url, "agentbridge-gateway")
    assert (counted["auditFailed"], counted["auditWaiting"]) == (0, 0)
    ours = await statistics(small.nats_url, "agentbridge-agent-api")
    rest = caused.total() - counted["auditStored"]
    expected = {"unauthenticated": 1, "auditStored": rest, "auditFailed": 0, "auditWaiting": 0}
    assert expected.items() <= ours.items()
    text = json.dumps(records)
    assert SECRET_PARAMETER not in text, "parameters, or an error's sentence"
    assert "eyJ" not in text, "a token"
    assert "k1" not in text, "an idempotency key"
    assert sum(record.get("replayed", False) for record in records) == 3
    failed = next(record for record in records if record["outcome"] == "command_failed")
    assert failed["code"] == "E_USER"
    assert all(record["outcome"] in {"success", *Code} for record in records)


async def test_a_command_that_dies_with_its_client_or_its_gateway_is_recorded_by_whoever_is_left(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    async with (
        running_bridge(tmp_path / "bridge", private_nats.url, gateways=2) as bridge,
        contextlib.AsyncExitStack() as stack,
    ):
        one = await stack.enter_async_context(bridge.app({"never": never}, gateway=0))
        other = await stack.enter_async_context(bridge.app({"never": never}, gateway=1))
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(bridge.call(app.client_id, "never")) for app in (one, other)]
            for app in (one, other):
                await app.received(type="command")
            await one.socket.close()
            await bridge.gateways[1].kill()
        assert [call.result().json()["code"] for call in calls] == ["client_lost"] * 2
        records = await recorded(bridge.nats_url, 2)

    assert {(record["by"], record["clientId"], record["outcome"]) for record in records} == {
        ("gateway", one.client_id, "client_lost"),
        ("agent_api", other.client_id, "client_lost"),
    }
    lost = next(record for record in records if record["by"] == "agent_api")
    assert lost["durationMs"] > 0
    assert (lost["agent"], lost["target"]) == ("agent-1", "never")


async def test_commands_of_the_agents_socket_are_recorded_too(bridge: Bridge) -> None:
    async with bridge.app(HANDLERS) as app, agent_socket(bridge.agent_apis[0].url) as socket:
        assert (await socket.call(app.client_id, "echo"))["status"] == "success"
        assert (await socket.call("nobody", "echo"))["error"]["code"] == "client_not_found"
        await socket.send({"type": "command", "id": "x", "command": {"target": "echo"}, "timeoutMs": -1})
        await socket.send({"type": "subscribe", "id": 7})
        await socket.send("{")
        records = await recorded(bridge.nats_url, 5)
    assert outcomes(records) == Counter(
        {
            ("gateway", "success"): 1,
            ("agent_api", "client_not_found"): 1,
            ("agent_api", "invalid_frame"): 3,  # what cannot be understood may have been a command
        }
    )


async def test_parameters_are_recorded_where_the_settings_ask_for_them_and_large_ones_by_size(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    folder = tmp_path / "bridge"
    async with (
        running_bridge(folder, private_nats.url, audit_parameters="on") as bridge,
        bridge.app(HANDLERS) as app,
    ):
        await bridge.call(app.client_id, "echo", {"x": [1]})
        await bridge.call(app.client_id, "echo", {"x": "y" * 5000})
        await bridge.call(app.client_id, "unknown", {"z": 1})
        await bridge.call("nobody", "echo", {"z": 2})
        records = await recorded(bridge.nats_url, 4)
    kept = {(record["by"], record["outcome"], json.dumps(record["parameters"])) for record in records}
    assert kept == {
        ("gateway", "success", '{"x": [1]}'),
        ("gateway", "success", '"5008 bytes"'),
        ("gateway", "unknown_capability", '{"z": 1}'),
        ("agent_api", "client_not_found", '{"z": 2}'),
    }


async def test_nothing_is_recorded_where_that_is_switched_off(tmp_path: Path, private_nats: NatsServer) -> None:
    async with running_bridge(tmp_path / "bridge", private_nats.url, audit="off") as bridge:
        async with bridge.app(HANDLERS) as app:
            await bridge.call(app.client_id, "echo")
            await bridge.call("nobody", "echo")
            assert "auditStored" not in await statistics(bridge.nats_url, "agentbridge-gateway")
        assert await stored(bridge.nats_url) == []


async def test_a_stranger_from_another_tenant_is_recorded_with_its_own(bridge: Bridge) -> None:
    async with bridge.app(HANDLERS, token=app_token("ann")) as app, agent(bridge.nats_url) as direct:
        stranger = agent_token("stranger", tenant="acme")
        assert await direct.refused(app.client_id, {"target": "echo"}, token=stranger) == "client_not_found"
        [(subject, record)] = await until(lambda: stored(bridge.nats_url, audit_of("acme").stream))
    assert subject == f"agentbridge.acme.audit.{app.client_id}.client_not_found"
    assert (record["tenant"], record["agent"]) == ("acme", "stranger")
    assert "user" not in record, "whose client it is, is none of its business"


async def test_commands_go_on_while_the_stream_refuses_and_what_is_lost_at_the_end_is_counted(bridge: Bridge) -> None:
    async with bridge.app(HANDLERS) as app, agent(bridge.nats_url) as direct:
        await bridge.call(app.client_id, "echo")
        await recorded(bridge.nats_url, 1)
        await direct.nats.jetstream().update_stream(
            name=AUDIT_STREAM, subjects=["agentbridge.default.audit.>"], sealed=True
        )
        for _ in range(20):
            assert (await bridge.call(app.client_id, "echo")).status_code == httpx.codes.OK

        counted = await statistics(bridge.nats_url, "agentbridge-gateway")
        assert (counted["auditStored"], counted["auditWaiting"], counted["auditFailed"]) == (1, 20, 0)
    gateway = bridge.gateways[0]
    assert await gateway.terminate() == 0
    assert "20 audit records are lost, 20 since this process began" in gateway.log
