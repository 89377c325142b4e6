"""The original SDK's form at a gateway: components one command at a time, updates, errors, and what strangers try."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.played.app import application, socket_of
from support.processes.child import Process
from support.processes.gateways import Agent, Answer, gateway_process, shared_gateway
from support.processes.javascript import needs_node, node_app
from support.settings import app_token
from support.wait import until
from websockets.asyncio.client import ClientConnection


@pytest.fixture(scope="module")
def gateway(shared_nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with shared_gateway(tmp_path_factory.mktemp("gateway"), shared_nats_url) as running:
        yield running
        assert "Traceback" not in running.log


async def heard(socket: ClientConnection) -> Any:
    async with asyncio.timeout(10):
        return json.loads(await socket.recv())


async def said(socket: ClientConnection, type_: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": type_, "id": "m1", "timestamp": "2025-01-01T00:00:00Z", **fields}))


async def registered(socket: ClientConnection, **offers: Any) -> str:
    client_id = (await heard(socket))["clientId"]
    await said(socket, "register_capabilities", **offers)
    assert (await heard(socket))["type"] == "connection_ack"
    return str(client_id)


PANEL = {"id": "panel", "componentType": "panel", "properties": {}, "actions": {"open": {"description": "Open it"}}}


@needs_node
async def test_properties_are_set_and_errors_find_their_command(gateway: Process, caller: Agent) -> None:
    async with node_app("published_sdk", gateway.url, app_token()) as app:
        await app.heard("registered")
        updated = await caller.call(app.client_id, "panel", {"open": True}, action="update_component")
        assert updated["status"] == "success"
        assert app.all_heard("updated") == [["updated", "panel", {"open": True}]]
        failed = await caller.call(app.client_id, "panel", action="shut")
        assert (failed["error"]["message"], failed["error"]["details"]) == (
            "no shut at panel",
            {"code": "ACTION_NOT_SUPPORTED"},
        )
        assert (await caller.call(app.client_id, "panel", action="open"))["status"] == "success"
        assert await caller.refused(app.client_id, {"target": "panel", "action": "sing"}) == "unknown_capability"


@needs_node
async def test_function_that_is_registered_later_joins_the_others(gateway: Process, caller: Agent) -> None:
    async with node_app("published_sdk", gateway.url, app_token()) as app:
        await app.heard("registered")
        assert await caller.refused(app.client_id, {"target": "late"}) == "unknown_capability"
        await app.call("register", "late")

        async def offered() -> bool:
            answer = await caller.call(app.client_id, "late", timeoutMs=100)
            return bool(answer["error"]["code"] == "timeout")

        await until(offered)
        assert (await caller.call(app.client_id, "add", {"a": 1, "b": 2}))["result"] == 3


async def test_commands_of_one_component_are_sent_one_after_the_other(gateway: Process, caller: Agent) -> None:
    async with socket_of(gateway.url, app_token()) as socket:
        client_id = await registered(socket, components=[PANEL])
        async with asyncio.TaskGroup() as tasks:

            async def call(number: int) -> Answer:
                return await caller.call(client_id, "panel", {"n": number}, action="open", timeoutMs=4000)

            answers = [tasks.create_task(call(number)) for number in range(3)]
            for _ in range(3):
                command = await heard(socket)
                assert command["type"] == "call_component_action"
                await said(socket, "ping")
                assert await heard(socket) == {"type": "pong"}
                await said(
                    socket, "component_action_result", correlationId="panel", success=True, data=command["parameters"]
                )
        assert [answer.result()["result"] for answer in answers] == [{"n": number} for number in range(3)]


async def test_late_result_of_a_command_that_timed_out_answers_no_other(gateway: Process, caller: Agent) -> None:
    async with socket_of(gateway.url, app_token()) as socket:
        client_id = await registered(socket, components=[PANEL])
        first = await caller.call(client_id, "panel", action="open", timeoutMs=100)
        assert first["error"]["code"] == "timeout"
        assert [(await heard(socket))["type"] for _ in range(2)] == ["call_component_action", "cancel"]
        async with asyncio.TaskGroup() as tasks:
            second = tasks.create_task(caller.call(client_id, "panel", {"n": 2}, action="open", timeoutMs=4000))
            await said(socket, "component_action_result", correlationId="panel", success=True, data="late")
            assert (await heard(socket))["parameters"] == {"n": 2}
            await said(socket, "component_action_result", correlationId="panel", success=True, data="second")
        assert second.result()["result"] == "second"


async def test_large_commands_for_a_busy_component_are_refused_and_not_kept(gateway: Process, caller: Agent) -> None:
    async with socket_of(gateway.url, app_token(), max_size=None) as socket:
        client_id = await registered(socket, components=[PANEL])
        large = {"x": "x" * 500_000}
        async with asyncio.TaskGroup() as tasks:
            answers = [
                tasks.create_task(caller.call(client_id, "panel", large, action="open", timeoutMs=1500))
                for _ in range(6)
            ]
        codes = sorted(answer.result()["error"]["code"] for answer in answers)
    assert codes == ["overloaded"] * 3 + ["timeout"] * 3


async def test_commands_that_wait_for_components_count_as_the_user_s_unread_output(
    shared_nats_url: str, tmp_path: Path, caller: Agent
) -> None:
    """Each session is far below its own megabyte; together they would hold 2.8 MB of 2."""
    async with (
        gateway_process(tmp_path, shared_nats_url, max_unread_bytes=2 * 1024 * 1024) as gateway,
        contextlib.AsyncExitStack() as stack,
        application(gateway.url, {"echo": lambda given: given}, token=app_token("neighbour")) as neighbour,
        asyncio.TaskGroup() as tasks,
    ):
        sockets = [await stack.enter_async_context(socket_of(gateway.url, app_token("hoarder"))) for _ in range(4)]
        clients = [await registered(socket, components=[PANEL]) for socket in sockets]
        large = {"x": "x" * 350_000}

        def calls() -> list[asyncio.Task[Answer]]:
            return [
                tasks.create_task(caller.call(client_id, "panel", large, action="open", timeoutMs=2000, seconds=20))
                for client_id in clients
                for _ in range(3)
            ]

        answers = calls()
        refused = [found for answer in answers if (found := (await answer)["error"])["code"] == "overloaded"]
        assert {error["details"]["limit"] for error in refused} == {"agent"}
        assert len(refused) in range(1, 8)
        assert (await caller.call(neighbour.client_id, "echo", large))["status"] == "success"

        async def has_room_again() -> bool:
            for socket in sockets:
                await said(socket, "component_action_result", correlationId="panel", success=True)
            answer = await caller.call(clients[0], "panel", large, action="open", timeoutMs=300)
            return bool(answer["error"]["code"] == "timeout")

        assert await until(has_room_again)


@pytest.mark.parametrize(
    "data",
    [
        '{"type":"register_capabilities","functions":' + "[" * 3000,
        '{"type":"function_result","correlationId":7,"success":true}',
        '{"type":"update_capabilities","functions":{}}',
        '{"type":"call_function"}',
        "nonsense",
        b"binary",
    ],
    ids=lambda data: str(data[:50]),
)
async def test_bad_message_is_told_and_the_next_one_is_taken(gateway: Process, data: str | bytes) -> None:
    async with socket_of(gateway.url, app_token()) as socket:
        await registered(socket, functions=[{"name": "add"}])
        await socket.send(data)
        assert (await heard(socket))["code"] == "invalid_frame"
        await said(socket, "ping")
        assert await heard(socket) == {"type": "pong"}


async def test_results_and_errors_that_answer_nothing_are_dropped(gateway: Process, caller: Agent) -> None:
    async with socket_of(gateway.url, app_token()) as socket:
        client_id = await registered(socket, functions=[{"name": "add"}], components=[PANEL])
        for _ in range(300):
            await said(socket, "error", code="X", message="no")
            await said(socket, "component_action_result", correlationId="panel", success=True)
            await said(socket, "function_result", correlationId="r", success=True)
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(caller.call(client_id, "add"))
            command = await heard(socket)
            await said(socket, "function_result", correlationId=command["id"], success=True, data=1)
        assert answer.result()["result"] == 1


async def test_update_of_a_large_list_is_held_to_the_clients_rates(gateway: Process) -> None:
    async with socket_of(gateway.url, app_token("flooder")) as socket:
        await registered(socket, functions=[{"name": f"f{number}", "description": "x" * 400} for number in range(490)])
        for number in range(600):
            await said(socket, "update_capabilities", functions=[{"name": "f1", "description": str(number)}])
        assert (await heard(socket))["code"] == "rate_limited"
