"""One application in every dialect, by the library that such applications use: an agent sees no difference."""

import asyncio
import contextlib
import signal
from urllib.parse import urlsplit

import httpx
import pytest
from support.played.agent_socket import agent_socket
from support.processes.bridge import Bridge
from support.processes.javascript import NodeApp, needs_node, node_app
from support.settings import app_token, default
from support.wait import until

from gateway.settings import GatewaySettings

pytestmark = needs_node
URLS = {
    "native": "ws://{}/ws",
    "socketio": "http://{}",
    "actioncable": "ws://{}/cable",
    "document": "ws://{}/ws",
    "published_sdk": "ws://{}/agent-bridge",
}
MAX_IN_FLIGHT = default(GatewaySettings, "max_in_flight_per_client")
every_dialect = pytest.mark.parametrize("dialect", URLS)


def url_of(bridge: Bridge, dialect: str, gateway: int = 0) -> str:
    return URLS[dialect].format(urlsplit(bridge.gateways[gateway].url).netloc)


async def registered(bridge: Bridge, app: NodeApp) -> str:
    """Wait until an application has registered and is discovered; return its id."""
    await app.heard("registered", {"status": "success"})
    await bridge.listed(app.client_id)
    return app.client_id


@every_dialect
async def test_commands_are_executed_checked_and_answered_alike(bridge: Bridge, dialect: str) -> None:
    async with node_app(dialect, url_of(bridge, dialect), app_token()) as app:
        client_id = await registered(bridge, app)

        answer = await bridge.call(client_id, "add", {"a": 1, "b": 2})
        assert (answer.status_code, answer.json()["result"]) == (httpx.codes.OK, 3)

        failed = (await bridge.call(client_id, "fail")).json()
        assert (failed["code"], failed["message"], failed["details"]) == (
            "command_failed",
            "not today",
            {"code": "E_NO"},
        )
        refused = await bridge.call(client_id, "add", {"a": "one", "b": 2})
        assert refused.json()["code"] == "invalid_parameters"
        assert (await bridge.call(client_id, "sub")).json()["code"] == "unknown_capability"

        assert (await bridge.call(client_id, "rare")).status_code == httpx.codes.OK
        assert (await bridge.call(client_id, "rare")).json()["code"] == "rate_limited"

        command = {"clientId": client_id, "command": {"target": "panel", "action": "open", "parameters": {"x": 1}}}
        opened = (await bridge.http.post("/api/command", json=command)).json()
        assert opened["result"] == {"action": "open", "parameters": {"x": 1}}


@every_dialect
async def test_timeouts_and_cancels_reach_the_application_alike(bridge: Bridge, dialect: str) -> None:
    async with node_app(dialect, url_of(bridge, dialect), app_token()) as app:
        client_id = await registered(bridge, app)
        late = await bridge.call(client_id, "never", timeout_ms=300)
        assert (late.status_code, late.json()["code"]) == (httpx.codes.GATEWAY_TIMEOUT, "timeout")
        _, cancel = await app.heard("cancel")
        assert (cancel["requestId"], cancel["reason"]) == (app.all_heard("begun")[0][1], "timeout")

        async with agent_socket(bridge.agent_apis[0].url) as agent:
            command = await agent.command(client_id, "never")
            _, request_id = await app.heard("begun", count=2)
            await agent.send({"type": "cancel", "id": command})
            assert (await agent.answer(command))["error"]["code"] == "cancelled"
            _, cancel = await app.heard("cancel", count=2)
        assert cancel["requestId"] == request_id


@every_dialect
async def test_limits_of_a_session_hold_alike(bridge: Bridge, dialect: str) -> None:
    """Commands in flight are bounded; an answer above the limit ends its connection, and the library comes back."""
    async with node_app(dialect, url_of(bridge, dialect), app_token()) as app:
        client_id = await registered(bridge, app)
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(bridge.call(client_id, "never")) for _ in range(MAX_IN_FLIGHT + 4)]
            await until(lambda: sum(call.done() for call in calls) >= 4, 10)
            assert (await bridge.call(client_id, "never")).json()["code"] == "overloaded"
            assert sum(call.done() for call in calls) == 4
            assert {call.result().json()["code"] for call in calls if call.done()} == {"overloaded"}
            for call in calls:
                call.cancel()

        async def is_lost() -> bool:
            lost = await bridge.call(client_id, "shout", {"characters": 2_000_000})
            assert lost.json()["code"] in ("client_lost", "overloaded"), "while cancelled commands are in flight"
            return bool(lost.json()["code"] == "client_lost")

        await until(is_lost, 10)
        await until(lambda: app.client_id != client_id, 20)
        await app.heard("registered", count=2)
        await bridge.listed(app.client_id)
        assert (await bridge.call(app.client_id, "add", {"a": 1, "b": 2})).json()["result"] == 3


@every_dialect
async def test_progress_and_events_reach_agents_alike(bridge: Bridge, dialect: str) -> None:
    async with node_app(dialect, url_of(bridge, dialect), app_token()) as app:
        client_id = await registered(bridge, app)
        body = {"clientId": client_id, "command": {"target": "count"}}
        answer = await bridge.http.post("/api/command", json=body, headers={"Accept": "text/event-stream"})
        events = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
        assert events == ["progress", "response"]
        assert '"progress":1.0,"total":2.0' in answer.text

        async with bridge.http.stream("GET", "/api/events", params={"event": "announced"}) as stream:
            assert (await bridge.call(client_id, "announce", {"n": 1})).status_code == httpx.codes.OK
            async for line in stream.aiter_lines():
                if line.startswith("data: ") and "announced" in line:
                    break
        assert '"data":{"n":1}' in line
        assert '"source":"page"' in line


@every_dialect
async def test_client_that_leaves_is_gone_at_once_and_its_caller_hears_it(bridge: Bridge, dialect: str) -> None:
    async with node_app(dialect, url_of(bridge, dialect), app_token()) as app:
        client_id = await registered(bridge, app)

        async def leave() -> None:
            await app.heard("begun")
            await app.call("disconnect")

        answer, _ = await asyncio.gather(bridge.call(client_id, "never", timeout_ms=20_000), leave())
        assert answer.json()["code"] == "client_lost"
        await bridge.listed()


@every_dialect
async def test_killed_client_is_lost_to_its_caller_at_once(bridge: Bridge, dialect: str) -> None:
    async with node_app(dialect, url_of(bridge, dialect), app_token()) as app:
        client_id = await registered(bridge, app)
        begun = bridge.call(client_id, "never", timeout_ms=20_000)

        async def kill() -> None:
            await app.heard("begun")
            app.process.kill()

        answer, _ = await asyncio.gather(begun, kill())
        assert answer.json()["code"] == "client_lost"


@every_dialect
async def test_client_that_does_not_move_is_lost_to_its_caller_in_seconds(bridge: Bridge, dialect: str) -> None:
    async with node_app(dialect, url_of(bridge, dialect), app_token()) as app:
        client_id = await registered(bridge, app)

        async def freeze() -> None:
            await app.heard("begun")
            app.process.send_signal(signal.SIGSTOP)

        answer, _ = await asyncio.gather(bridge.call(client_id, "never", timeout_ms=30_000), freeze())
        assert answer.json()["code"] == "client_lost"
        await bridge.listed()


@every_dialect
@pytest.mark.parametrize("end", ["stopped", "killed"])
async def test_application_is_back_after_its_gateway_has_ended(bridge: Bridge, dialect: str, end: str) -> None:
    """Its library connects again by itself, as often as it takes, and the application registers again."""
    gateway = bridge.gateways[0]
    port = urlsplit(gateway.url).port
    async with node_app(dialect, url_of(bridge, dialect), app_token()) as app:
        first = await registered(bridge, app)
        await (gateway.kill() if end == "killed" else gateway.terminate())
        await app.heard("disconnect")
        gateway.environment["AGENTBRIDGE_GATEWAY_PORT"] = str(port)
        await gateway.start()
        await until(lambda: app.client_id != first, 40)
        await app.heard("registered", count=2)
        await bridge.listed(app.client_id, seconds=15)
        assert (await bridge.call(app.client_id, "add", {"a": 1, "b": 2})).json()["result"] == 3


async def test_one_agent_calls_applications_of_all_dialects_at_once(bridge: Bridge) -> None:
    async with contextlib.AsyncExitStack() as running:
        apps = [
            await running.enter_async_context(node_app(dialect, url_of(bridge, dialect), app_token()))
            for dialect in URLS
        ]
        for app in apps:
            await app.heard("registered", {"status": "success"})
        clients = [app.client_id for app in apps]
        await bridge.listed(*clients)
        calls = [bridge.call(client_id, "add", {"a": number, "b": 1}) for number, client_id in enumerate(clients * 20)]
        answers = [answer.json() for answer in await asyncio.gather(*calls)]
    assert [answer["result"] for answer in answers] == [number + 1 for number in range(len(answers))]
    assert [answer["clientId"] for answer in answers] == clients * 20
