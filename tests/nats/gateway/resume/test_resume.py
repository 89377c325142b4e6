"""Sessions that outlive their sockets, on real gateways and a real NATS: here, and at another gateway."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from support.load.resuming_app import ResumingApp, resuming_application
from support.nats.nats_server import NatsServer
from support.nats.stores import make_store
from support.played.app import application, never, socket_of
from support.processes.child import Process
from support.processes.gateways import Agent, agent, gateway_process
from support.processes.metrics import figures, of_gateway
from support.settings import app_token, settings_for
from support.wait import until
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from protocol.runtime.nats.connection import connect
from protocol.runtime.streams.stores import keys_of
from registry.settings import RegistrySettings

GRACE_SECONDS = 3
LOST, UNAVAILABLE = "client_lost", "unavailable"


def echo(parameters: dict[str, Any]) -> dict[str, Any]:
    return parameters


@pytest.fixture
async def gateways(private_nats: NatsServer, tmp_path: Path) -> AsyncIterator[list[Process]]:
    """Two gateways."""
    async with (
        gateway_process(tmp_path / "a", private_nats.url) as one,
        gateway_process(tmp_path / "b", private_nats.url) as other,
    ):
        yield [one, other]
        assert "Traceback" not in one.log + other.log


@pytest.fixture
async def caller(private_nats: NatsServer) -> AsyncIterator[Agent]:
    async with agent(private_nats.url) as connected:
        yield connected


@pytest.fixture
async def store(private_nats: NatsServer) -> None:
    """The store of idempotency keys, which a registry would make."""
    async with connect(settings_for(RegistrySettings, private_nats.url), "registry", "registry") as connection:
        await make_store(connection.client, keys_of("default"))


here_and_elsewhere = pytest.mark.parametrize("count", [1, 2], ids=["same gateway", "another gateway"])


async def code_of(caller: Agent, client_id: str, target: str = "echo", **more: Any) -> str:
    """Return the code of a command's error, `success` without one, or that nobody is there."""
    try:
        answer = await caller.call(client_id, target, **more)
    except nats.errors.NoRespondersError:
        return "nobody"
    return str(answer.get("error", {}).get("code", answer["status"]))


async def first_frame(gateway: Process, resume: str, token: str | None = None) -> tuple[ClientConnection, Any]:
    """Connect with a resume token; return the socket, and the first frame."""
    socket = await socket_of(gateway.url, token or app_token(), f"/ws?resume={resume}")
    return socket, json.loads(await socket.recv())


# --- coming back ---


@here_and_elsewhere
async def test_session_goes_on_after_its_socket(gateways: list[Process], caller: Agent, count: int) -> None:
    release = asyncio.Event()

    async def slow(parameters: dict[str, Any]) -> str:
        await release.wait()
        return "done"

    async with (
        resuming_application(gateways[:count], {"slow": slow, "echo": echo}) as app,
        asyncio.TaskGroup() as tasks,
    ):
        call = tasks.create_task(caller.call(app.client_id, "slow", seconds=20))
        command = await app.received(type="command")
        app.cut()
        again = await app.connected(2)
        assert again["clientId"] == app.connections[0]["clientId"]
        assert again["resumed"] is True
        assert again["awaiting"] == [command["requestId"]]
        assert (await caller.call(app.client_id, "echo", {"n": 1}))["result"] == {"n": 1}
        release.set()
        assert (await call)["result"] == "done"
        assert len(app.all_received(type="command", target="slow")) == 1


@here_and_elsewhere
async def test_answer_that_was_given_while_away_is_passed_on(
    gateways: list[Process], caller: Agent, count: int
) -> None:
    begun = asyncio.Event()

    async def slow(parameters: dict[str, Any]) -> str:
        begun.set()
        await until(lambda: app.socket is None)
        return "given while away"

    async with resuming_application(gateways[:count], {"slow": slow}) as app, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(caller.call(app.client_id, "slow", seconds=20))
        await begun.wait()
        app.returns.clear()
        app.cut()
        await until(lambda: any(app.answers.values()))
        app.returns.set()
        assert (await call)["result"] == "given while away"


@here_and_elsewhere
async def test_command_that_the_client_never_got_is_sent_again(
    gateways: list[Process], caller: Agent, count: int
) -> None:
    async with resuming_application(gateways[:count], {"echo": echo}) as app, asyncio.TaskGroup() as tasks:
        assert app.socket is not None
        app.socket.transport.pause_reading()  # what is sent from now on is lost with the connection
        call = tasks.create_task(caller.call(app.client_id, "echo", {"n": 7}, seconds=20))
        await until(lambda: _in_flight(gateways[0]))
        app.cut()
        assert (await call)["result"] == {"n": 7}
        (command,) = app.all_received(type="command")
        assert app.connections[1]["awaiting"] == [command["requestId"]]


async def _in_flight(gateway: Process) -> bool:
    return await figure(gateway, "commands_in_flight") == 1


async def detached(gateway: Process) -> None:
    """Wait until a gateway has noticed that its only client is away."""

    async def is_detached() -> bool:
        return await figure(gateway, "sessions_detached") == 1

    await until(is_detached)


async def figure(gateway: Process, name: str) -> float:
    """Return a figure of a gateway, whatever the beginning and the end of its name."""
    async with of_gateway(gateway) as http:
        found = await figures(http)
    return next(value for each, value in found.items() if name in each)


@here_and_elsewhere
async def test_interrupted_command_is_told_once(gateways: list[Process], caller: Agent, count: int) -> None:
    async with resuming_application(gateways[:count], {"slow": never}) as app, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(caller.call(app.client_id, "slow", seconds=20))
        command = await app.received(type="command")
        fault = {"code": "interrupted", "message": "the page was left"}
        app.answers[command["requestId"]] = {
            "type": "response", "requestId": command["requestId"], "status": "error", "error": fault,
        }  # fmt: skip
        app.cut()
        error = (await call)["error"]
        assert (error["code"], error["details"]["code"], error["retryable"]) == ("command_failed", "interrupted", False)


async def test_unknown_is_for_commands_of_a_former_connection(gateways: list[Process], caller: Agent) -> None:
    async with resuming_application(gateways[:1], {"slow": never}) as app, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(code_of(caller, app.client_id, "slow", timeoutMs=1500))
        command = await app.received(type="command")
        await app.send({"type": "unknown", "requestId": command["requestId"]})
        error = await app.received(type="error")
        assert error["code"] == "invalid_frame"
        assert len(app.all_received(type="command")) == 1
        await app.send({"type": "unknown", "requestId": "never-heard-of", "id": "u1"})
        await app.received(type="ack", id="u1")
        assert await call == "timeout"


async def test_token_may_come_as_a_subprotocol(gateways: list[Process]) -> None:
    async with resuming_application(gateways[:1], {}) as app:
        client_id, token = app.client_id, app.resume_token
    protocols = ["agentbridge.v1", f"bearer.{app_token()}", f"resume.{token}"]
    app_socket, first = await first_frame(gateways[0], "")
    await app_socket.close()
    assert "resumeToken" in first
    async with socket_of(gateways[0].url, None, subprotocols=protocols) as socket:
        again = json.loads(await socket.recv())
        assert socket.subprotocol == "agentbridge.v1"
    assert again["clientId"] == client_id  # nobody holds it any more: it said goodbye
    assert again["resumed"] is False


# --- who may come back ---


@here_and_elsewhere
async def test_newer_connection_replaces_the_older(gateways: list[Process], caller: Agent, count: int) -> None:
    async with resuming_application(gateways[:1], {"echo": echo}) as app:
        old = app.resume_token
        socket, first = await first_frame(gateways[count - 1], old)
        async with socket:
            assert (first["clientId"], first["resumed"]) == (app.client_id, True)
            await until(lambda: app.close_codes == [4009])
            called = asyncio.get_running_loop().create_task(caller.call(app.client_id, "echo", {"n": 1}))
            command = json.loads(await socket.recv())
            answer = {"type": "response", "requestId": command["requestId"], "status": "success", "result": "new"}
            await socket.send(json.dumps(answer))
            assert (await called)["result"] == "new"
            assert app.all_received(type="command") == []


async def test_token_that_is_used_twice_at_once_leaves_one_holder(gateways: list[Process], caller: Agent) -> None:
    async with resuming_application(gateways[:1], {"echo": echo}) as app:
        token, client_id = app.resume_token, app.client_id
        app.wants_back = False
        app.cut()
        tries = await asyncio.gather(*(_claim(gateways[number % 2], token) for number in range(6)))
        open_sockets = [socket for socket, frame in tries if frame is not None]
        await until(lambda: sum(socket.close_code is None for socket in open_sockets) == 1)
        assert {frame["clientId"] for _, frame in tries if frame is not None} == {client_id}
        closed = [socket.close_code for socket, _ in tries if socket.close_code is not None]
        assert set(closed) == {4009}
        (holder,) = (socket for socket in open_sockets if socket.close_code is None)
        async with holder, asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(caller.call(client_id, "echo", {"n": number})) for number in range(5)]
            for _ in calls:
                command = json.loads(await holder.recv())
                answer = {"type": "response", "requestId": command["requestId"], "status": "success"}
                await holder.send(json.dumps(answer))
        assert {call.result()["status"] for call in calls} == {"success"}


async def _claim(gateway: Process, token: str) -> tuple[ClientConnection, Any]:
    socket = await socket_of(gateway.url, app_token(), f"/ws?resume={token}")
    try:
        async with asyncio.timeout(10):
            return socket, json.loads(await socket.recv())
    except ConnectionClosed:
        await socket.wait_closed()
        return socket, None


@here_and_elsewhere
async def test_stolen_token_gives_nothing(gateways: list[Process], caller: Agent, count: int) -> None:
    async with resuming_application(gateways[:1], {"echo": echo}) as app:
        thief = gateways[count - 1]
        for token in (app_token("thief"), app_token(tenant="elsewhere")):
            socket, first = await first_frame(thief, app.resume_token, token)
            async with socket:
                assert first["clientId"] != app.client_id
                assert first["resumed"] is False
        async with socket_of(thief.url, None, f"/ws?resume={app.resume_token}") as socket:
            await socket.wait_closed()
            assert socket.close_code == 4001
        assert await code_of(caller, app.client_id) == "success"
        assert app.close_codes == []
        app.cut()  # the thief's use was not the token's first use
        assert (await app.connected(2))["resumed"] is True


@here_and_elsewhere
async def test_token_is_spent_when_the_next_one_was_used(gateways: list[Process], count: int) -> None:
    async with resuming_application(gateways[:1], {}) as app:
        first_token = app.resume_token
        for number in (2, 3):
            app.cut()
            await app.connected(number)
        socket, frame = await first_frame(gateways[count - 1], first_token)
        async with socket:
            assert (frame["clientId"] != app.client_id, frame["resumed"]) == (True, False)
            assert app.close_codes == [1006, 1006]


@here_and_elsewhere
async def test_token_stays_valid_until_the_next_one_is_used(gateways: list[Process], count: int) -> None:
    """The frame that brought the next one may have been lost."""
    async with resuming_application(gateways[:count], {}) as app:
        first_token = app.resume_token
        app.cut()
        await app.connected(2)
        app.resume_token = first_token
        app.cut()
        assert (await app.connected(3))["resumed"] is True
        assert len({frame["clientId"] for frame in app.connections}) == 1


@pytest.mark.parametrize("token", ["nonsense", "a.b.c", "x" * 5000, "%00.1.AAAA", "é.1.AAAA"])
async def test_nonsense_for_a_token_begins_a_new_session(gateways: list[Process], token: str) -> None:
    socket, frame = await first_frame(gateways[0], token)
    async with socket:
        assert frame["resumed"] is False


# --- not coming back ---


async def test_grace_ends_with_the_loss_of_what_is_in_flight(
    private_nats: NatsServer, tmp_path: Path, caller: Agent
) -> None:
    async with (
        gateway_process(tmp_path / "a", private_nats.url, resume_grace_seconds=GRACE_SECONDS) as gateway,
        resuming_application([gateway], {"slow": never, "echo": echo}) as app,
        asyncio.TaskGroup() as tasks,
    ):
        call = tasks.create_task(code_of(caller, app.client_id, "slow", seconds=20))
        await app.received(type="command")
        app.returns.clear()
        app.cut()
        await detached(gateway)
        assert await code_of(caller, app.client_id) == UNAVAILABLE
        assert not call.done()
        assert await call == LOST
        await until(lambda: _code_is(caller, app, "nobody"))


async def _code_is(caller: Agent, app: ResumingApp, wanted: str) -> bool:
    return await code_of(caller, app.client_id) == wanted


async def test_goodbye_ends_the_session_at_once(gateways: list[Process], caller: Agent) -> None:
    async with resuming_application(gateways[:1], {"slow": never}) as app, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(code_of(caller, app.client_id, "slow", seconds=20))
        await app.received(type="command")
        app.wants_back = False
        assert app.socket is not None
        await app.socket.close(1000)
        async with asyncio.timeout(GRACE_SECONDS / 2):
            assert await call == LOST


async def test_page_that_is_left_may_come_back(gateways: list[Process]) -> None:
    async with resuming_application(gateways[:1], {}) as app:
        assert app.socket is not None
        await app.socket.close(1001)
        assert (await app.connected(2))["resumed"] is True


async def test_clients_that_do_not_ask_are_served_as_before(gateways: list[Process], caller: Agent) -> None:
    async with application(gateways[0].url, {"slow": never}) as app, asyncio.TaskGroup() as tasks:
        (first,) = app.all_received(type="connection")
        assert set(first) == {"type", "clientId", "protocolVersion", "limits"}
        call = tasks.create_task(code_of(caller, app.client_id, "slow", seconds=20))
        await app.received(type="command")
        app.socket.transport.abort()
        async with asyncio.timeout(GRACE_SECONDS / 2):
            assert await call == LOST


async def test_what_came_late_is_counted_after_the_session_has_moved(gateways: list[Process]) -> None:
    async with resuming_application(gateways, {}) as app:
        await app.send({"type": "response", "requestId": "long-ago", "status": "success", "result": 1})
        await until(lambda: _late(gateways[0]))
        app.cut()
        assert (await app.connected(2))["resumed"] is True
        assert await figure(gateways[0], "sessions_granted") == 1
        assert await _late(gateways[0])


async def _late(gateway: Process) -> bool:
    return await figure(gateway, "late_responses") == 1


# --- commands under a key ---


async def test_command_under_a_key_is_lost_if_its_session_moves(
    gateways: list[Process], caller: Agent, store: None
) -> None:
    """Its key names the gateway that answers for it, so that it is executed once whatever dies."""
    async with resuming_application(gateways, {"slow": never, "echo": echo}) as app, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(caller.call(app.client_id, "slow", idempotencyKey="k1", seconds=20))
        await app.received(type="command", target="slow")
        app.cut()
        again = await app.connected(2)
        assert (again["resumed"], again["awaiting"]) == (True, [])
        error = (await call)["error"]
        assert (error["code"], error["retryable"]) == (LOST, False)
        replay = await caller.call(app.client_id, "slow", idempotencyKey="k1")
        assert (replay["error"]["code"], replay["replayed"]) == (LOST, True)
        assert len(app.all_received(type="command", target="slow")) == 1
        assert await code_of(caller, app.client_id, idempotencyKey="k2") == "success"


async def test_command_under_a_key_goes_on_at_its_gateway(gateways: list[Process], caller: Agent, store: None) -> None:
    release = asyncio.Event()

    async def slow(parameters: dict[str, Any]) -> str:
        await release.wait()
        return "done"

    async with resuming_application(gateways[:1], {"slow": slow}) as app, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(caller.call(app.client_id, "slow", idempotencyKey="k1", seconds=20))
        command = await app.received(type="command")
        app.cut()
        assert (await app.connected(2))["awaiting"] == [command["requestId"]]
        release.set()
        assert (await call)["result"] == "done"


async def test_gateway_that_shuts_down_lets_commands_under_keys_end_first(
    private_nats: NatsServer, tmp_path: Path, caller: Agent, store: None
) -> None:
    release = asyncio.Event()

    async def slow(parameters: dict[str, Any]) -> str:
        await release.wait()
        return "done"

    async with (
        gateway_process(tmp_path / "a", private_nats.url, drain_seconds=10) as one,
        gateway_process(tmp_path / "b", private_nats.url) as other,
        resuming_application([one, other], {"slow": slow}) as app,
        asyncio.TaskGroup() as tasks,
    ):
        call = tasks.create_task(caller.call(app.client_id, "slow", idempotencyKey="k1", seconds=20))
        await app.received(type="command")
        one.signal(signal.SIGTERM)
        await until(lambda: _code_is(caller, app, UNAVAILABLE))
        assert app.close_codes == []
        release.set()
        assert (await call)["result"] == "done"
        again = await app.connected(2)
        assert (again["resumed"], app.close_codes) == (True, [1012])


# --- gateways that go ---


async def test_gateway_that_shuts_down_sends_its_clients_to_another_one_at_once(
    gateways: list[Process], caller: Agent
) -> None:
    release = asyncio.Event()

    async def slow(parameters: dict[str, Any]) -> str:
        await release.wait()
        return "done"

    async with resuming_application(gateways, {"slow": slow, "echo": echo}) as app, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(caller.call(app.client_id, "slow", seconds=20))
        command = await app.received(type="command")
        gateways[0].signal(signal.SIGTERM)
        again = await app.connected(2)
        assert (again["resumed"], again["awaiting"]) == (True, [command["requestId"]])
        assert app.close_codes == [1012]
        with pytest.raises(ConnectionRefusedError):
            await socket_of(gateways[0].url, app_token(), "/ws")
        assert (await caller.call(app.client_id, "echo", {"n": 1}))["result"] == {"n": 1}
        release.set()
        assert (await call)["result"] == "done"
        assert await gateways[0].ended() == 0


async def test_dead_gateway_leaves_the_id(gateways: list[Process], caller: Agent) -> None:
    async with resuming_application(gateways, {"echo": echo}) as app:
        client_id = app.client_id
        await gateways[0].kill()
        again = await app.connected(2, seconds=5)
        assert (again["clientId"], again["resumed"]) == (client_id, False)
        assert (await caller.call(client_id, "echo", {"n": 1}))["result"] == {"n": 1}


async def test_gateway_that_shuts_down_hands_over_sessions_without_clients(
    gateways: list[Process], caller: Agent
) -> None:
    async with resuming_application(gateways, {"slow": never, "echo": echo}) as app, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(caller.call(app.client_id, "slow", seconds=20))
        command = await app.received(type="command")
        app.returns.clear()
        app.cut()
        await detached(gateways[0])
        assert await gateways[0].terminate() == 0
        assert await code_of(caller, app.client_id) == UNAVAILABLE
        app.handlers["slow"] = echo
        app.answers[command["requestId"]] = {
            "type": "response", "requestId": command["requestId"], "status": "success", "result": "at last",
        }  # fmt: skip
        app.returns.set()
        again = await app.connected(2)
        assert (again["resumed"], again["awaiting"]) == (True, [command["requestId"]])
        assert (await call)["result"] == "at last"
        assert "Traceback" not in gateways[0].log


async def test_command_that_was_handed_over_with_its_session_can_be_sent_again(
    gateways: list[Process], caller: Agent
) -> None:
    async with resuming_application(gateways, {"echo": echo}) as app, asyncio.TaskGroup() as tasks:
        assert app.socket is not None
        app.socket.transport.pause_reading()
        call = tasks.create_task(caller.call(app.client_id, "echo", {"n": 7}, seconds=30))
        await until(lambda: _in_flight(gateways[0]))
        app.returns.clear()
        app.cut()
        await detached(gateways[0])
        assert await gateways[0].terminate() == 0
        assert await figure(gateways[1], "sessions_detached") == 1
        app.returns.set()
        assert (await call)["result"] == {"n": 7}


async def test_last_gateway_ends_sessions_when_it_shuts_down(private_nats: NatsServer, tmp_path: Path) -> None:
    async with (
        agent(private_nats.url) as caller,
        gateway_process(tmp_path / "alone", private_nats.url) as gateway,
        resuming_application([gateway], {"slow": never}) as app,
        asyncio.TaskGroup() as tasks,
    ):
        call = tasks.create_task(code_of(caller, app.client_id, "slow", seconds=20))
        await app.received(type="command")
        gateway.signal(signal.SIGTERM)
        await until(lambda: app.close_codes == [1012])
        assert await call == LOST
        assert await gateway.ended() == 0


async def test_last_gateway_lets_commands_end_before_it_stops(private_nats: NatsServer, tmp_path: Path) -> None:
    release = asyncio.Event()

    async def slow(parameters: dict[str, Any]) -> str:
        await release.wait()
        return "done"

    async with (
        agent(private_nats.url) as caller,
        gateway_process(tmp_path / "alone", private_nats.url, drain_seconds=10) as gateway,
        resuming_application([gateway], {"slow": slow, "echo": echo}) as app,
        asyncio.TaskGroup() as tasks,
    ):
        call = tasks.create_task(caller.call(app.client_id, "slow", seconds=20))
        await app.received(type="command")
        gateway.signal(signal.SIGTERM)
        await until(lambda: _code_is(caller, app, UNAVAILABLE))
        assert app.close_codes == []
        release.set()
        assert (await call)["result"] == "done"
        await until(lambda: app.close_codes == [1012])


async def test_frozen_gateway_gives_its_sessions_up_when_it_thaws(gateways: list[Process], caller: Agent) -> None:
    executed: list[Any] = []
    async with resuming_application(gateways, {"note": executed.append}) as app:
        assert app.socket is not None
        gateways[0].freeze()
        old, app.socket = app.socket, None
        tries = asyncio.get_running_loop().create_task(first_frame(gateways[1], app.resume_token))
        socket, first = await tries
        async with socket:
            assert first["clientId"] == app.client_id
            await socket.send(json.dumps({"type": "capability", "capabilities": ["note"], "id": "list"}))
            assert json.loads(await socket.recv())["type"] == "ack"
            call = asyncio.get_running_loop().create_task(caller.call(app.client_id, "note", {"n": 1}))
            command = json.loads(await socket.recv())
            gateways[0].thaw()
            await until(lambda: old.close_code == 4009)
            answer = {"type": "response", "requestId": command["requestId"], "status": "success", "result": "once"}
            await socket.send(json.dumps(answer))
            assert (await call)["result"] == "once"
            assert executed == []


async def test_frozen_gateway_executes_nothing_that_was_sent_meanwhile(gateways: list[Process], caller: Agent) -> None:
    async with resuming_application(gateways[:1], {"echo": echo}) as app, asyncio.TaskGroup() as tasks:
        gateways[0].freeze()
        call = tasks.create_task(caller.call(app.client_id, "echo", {"sent": "in the freeze"}, seconds=20))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(call), 1.5)
        gateways[0].thaw()
        assert (await call)["error"]["code"] == UNAVAILABLE
        assert (await caller.call(app.client_id, "echo", {"sent": "later"}))["result"] == {"sent": "later"}
        assert [command["parameters"] for command in app.all_received(type="command")] == [{"sent": "later"}]


async def test_session_goes_on_after_a_restart_of_nats(
    gateways: list[Process], caller: Agent, private_nats: NatsServer
) -> None:
    """Its gateway may have missed a claim, so it asks before it executes anything."""
    async with resuming_application(gateways[:1], {"echo": echo}) as app:
        private_nats.stop()
        await private_nats.start()
        await until(lambda: caller.nats.is_connected)
        await until(lambda: _code_is(caller, app, "success"), 10)
        assert app.close_codes == []
        app.cut()
        assert (await app.connected(2))["resumed"] is True


# --- strangers ---


async def test_forged_claims_change_nothing(gateways: list[Process], caller: Agent) -> None:
    async with resuming_application(gateways[:1], {"echo": echo}) as app:
        claim = {"op": "claim", "stage": "claim", "kind": "client", "generation": 2**52, "nonce": "n", "serial": 2**52}
        subject = f"agentbridge.default.command.{app.client_id}"
        for signature in ("", "AAAA", "A" * 24):
            for _ in range(100):
                headers = {"Agentbridge-Claim": signature}
                await caller.nats.publish(subject, json.dumps(claim).encode(), "_INBOX.thief", headers=headers)
        await until(lambda: _forged(gateways[0], 300))
        assert await code_of(caller, app.client_id) == "success"
        assert app.close_codes == []


async def _forged(gateway: Process, count: int) -> bool:
    return await figure(gateway, "claims_forged") == count


async def test_claim_that_is_published_again_changes_nothing(gateways: list[Process], caller: Agent) -> None:
    """Somebody who reads along, such as an administrator's tap, has real ones."""
    seen = []

    async def see(msg: Any) -> None:
        if msg.headers and "Agentbridge-Claim" in msg.headers:
            seen.append(msg)

    async with resuming_application(gateways, {"echo": echo}) as app:
        await caller.nats.subscribe(f"agentbridge.default.command.{app.client_id}", cb=see)
        await caller.nats.flush()
        app.cut()
        await app.connected(2)
        await until(lambda: len(seen) >= 2)
        for msg in seen:
            await caller.nats.publish(msg.subject, msg.data, msg.reply, headers=msg.headers)
            await caller.nats.publish(msg.subject, msg.data, "_INBOX.thief", headers=msg.headers)
        assert await code_of(caller, app.client_id) == "success"
        assert app.close_codes == [1006]
        assert app.socket is not None
