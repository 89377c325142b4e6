"""A gateway process through stalled and silent clients, freezes, restarts of NATS and its own end."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import nats.errors
import pytest
from nats.aio.msg import Msg
from support.nats.nats_server import NatsServer
from support.played.app import App, application, never, socket_of
from support.processes.child import Process
from support.processes.gateways import Agent, agent, gateway_process
from support.settings import admin_token, app_token, bearer
from support.wait import subscribed, until
from websockets.exceptions import InvalidStatus

from protocol import subjects
from protocol.reports import EndReason, Report

BUFFER_BYTES = 256 * 1024
RESIDENT_MEGABYTES = 64


@pytest.fixture
async def gateway(private_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Process]:
    """A gateway with little patience and small buffers."""
    settings = {"ping_interval_seconds": 1, "ping_timeout_seconds": 1, "send_buffer_bytes": BUFFER_BYTES}
    async with gateway_process(tmp_path, private_nats.url, **settings) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture
async def caller(private_nats: NatsServer) -> AsyncIterator[Agent]:
    async with agent(private_nats.url) as connected:
        yield connected


def echo(parameters: dict[str, Any]) -> dict[str, Any]:
    return parameters


def commands(app: App) -> list[Any]:
    return [frame["parameters"] for frame in app.all_received(type="command")]


async def works(caller: Agent, app: App) -> None:
    assert (await caller.call(app.client_id, "echo", {"still": "here"}))["result"] == {"still": "here"}


async def nobody(caller: Agent, client_id: str) -> bool:
    """Tell whether nothing is subscribed to the client's subject any more."""
    try:
        await caller.call(client_id, "echo")
    except nats.errors.NoRespondersError:
        return True
    return False


async def works_again(caller: Agent, app: App) -> None:
    """Wait until NATS, which has restarted, has read the gateway's subscriptions, and call the client."""

    async def is_reached() -> bool:
        return not await nobody(caller, app.client_id)

    await until(is_reached, 10)
    await works(caller, app)


def resident_megabytes(process: Process) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


# --- clients that do not behave ---


async def test_stalled_reader_is_cut_off_and_the_others_do_not_notice(gateway: Process, caller: Agent) -> None:
    async with (
        application(gateway.url, {"echo": echo, "never": never}) as stalled,
        application(gateway.url, {"echo": echo}) as other,
        asyncio.TaskGroup() as tasks,
    ):
        before = resident_megabytes(gateway)
        stalled.socket.transport.pause_reading()
        large = {"x": "x" * 500_000}
        calls = [tasks.create_task(caller.call(stalled.client_id, "never", large, seconds=20)) for _ in range(64)]
        for _ in range(20):
            await works(caller, other)
        answers = [await call for call in calls]
        assert {answer["error"]["code"] for answer in answers} <= {"overloaded", "client_lost", "client_not_found"}
        assert resident_megabytes(gateway) - before < RESIDENT_MEGABYTES
        stalled.socket.transport.resume_reading()
        assert await stalled.closed() in (1006, 1011)  # it may still read why: it did not answer a ping


async def test_client_that_pings_and_does_not_read_the_pongs_is_cut_off(
    private_nats: NatsServer, tmp_path: Path
) -> None:
    """Long before the gateway's own ping would find it out."""
    async with gateway_process(tmp_path, private_nats.url) as patient, application(patient.url) as app:
        transport = app.socket.transport
        transport.pause_reading()
        async with asyncio.timeout(15):
            while not transport.is_closing():
                for _ in range(1000):
                    app.socket.protocol.send_ping(b"x" * 125)
                app.socket.send_data()
                await until(lambda: transport.is_closing() or not transport.get_write_buffer_size())
        assert await app.closed() == 1006


async def test_client_that_is_silent_is_removed(gateway: Process, caller: Agent) -> None:
    async with (
        application(gateway.url, {"never": never, "echo": echo}) as silent,
        application(gateway.url, {"echo": echo}) as other,
        asyncio.TaskGroup() as tasks,
    ):
        call = tasks.create_task(caller.call(silent.client_id, "never", seconds=10))
        await silent.received(type="command")
        silent.socket.transport.pause_reading()  # no pong is sent from now on
        async with asyncio.timeout(9):
            assert (await call)["error"]["code"] == "client_lost"
            await until(lambda: nobody(caller, silent.client_id))
        await works(caller, other)
        silent.socket.transport.resume_reading()
        assert await silent.closed() == 1011


async def test_idle_client_that_answers_pings_stays(gateway: Process, caller: Agent) -> None:
    async with application(gateway.url, {"echo": echo}) as app:
        with pytest.raises(TimeoutError):
            await app.closed(4)
        await works(caller, app)


async def test_answer_that_comes_with_the_close_is_not_lost(gateway: Process, caller: Agent) -> None:
    async with application(gateway.url, {"never": never}) as app, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(caller.call(app.client_id, "never"))
        command = await app.received(type="command")
        body = {"type": "response", "requestId": command["requestId"], "status": "success", "result": "last words"}
        app.socket.protocol.send_text(json.dumps(body).encode())
        app.socket.protocol.send_close(1000)
        app.socket.send_data()
        assert (await call)["result"] == "last words"


# --- what the registry is told ---


class Registry:
    """Takes every report."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    async def take(self, msg: Msg) -> None:
        self.reports.append(msgspec.json.decode(msg.data, type=Report))
        await msg.respond(msgspec.json.encode({"number": self.reports[-1].number}))

    def told(self, client_id: str) -> list[str]:
        """Return what was told of a client, in order: "record", or why it was removed."""
        return [
            word
            for report in self.reports
            for word in [
                *("record" for record in report.records if record.client_id == client_id),
                *(removal.reason for removal in report.removals if removal.client_id == client_id),
            ]
        ]


@pytest.fixture
async def registry(caller: Agent) -> Registry:
    listening = Registry()
    await caller.nats.subscribe(subjects.REGISTRY_REPORT, cb=listening.take)
    await subscribed(caller.nats)
    return listening


async def test_what_a_client_sends_after_its_end_does_not_bring_it_back(
    gateway: Process, caller: Agent, registry: Registry
) -> None:
    async with application(gateway.url, {"echo": echo}) as app:
        await until(lambda: registry.told(app.client_id))
        app.socket.transport.pause_reading()  # it does not see that it is disconnected
        answer = await disconnect(caller, registry.reports[0].gateway_id, app.client_id)
        assert answer == {"disconnected": True}
        await until(lambda: EndReason.ADMINISTRATOR in registry.told(app.client_id))
        await app.send({"type": "capability", "capabilities": ["late"]})
        await app.send({"type": "metadata", "metadata": {"late": True}})
        async with application(gateway.url) as other:
            await until(lambda: registry.told(other.client_id))
        assert registry.told(app.client_id)[-1] == EndReason.ADMINISTRATOR
        app.socket.transport.resume_reading()
        assert await app.closed() == 1008


async def test_disconnect_is_for_administrators(gateway: Process, caller: Agent, registry: Registry) -> None:
    async with application(gateway.url, {"echo": echo}) as app:
        await until(lambda: registry.told(app.client_id))
        gateway_id = registry.reports[0].gateway_id
        for token, code in [
            (app_token(), "permission_denied"),
            (admin_token(tenant="elsewhere"), "client_not_found"),
            (admin_token(limits={"users": []}), "client_not_found"),
            ("nonsense", "unauthenticated"),
            (None, "unauthenticated"),
        ]:
            answer = await disconnect(caller, gateway_id, app.client_id, token)
            assert answer["error"]["code"] == code
        assert (await disconnect(caller, gateway_id, "nobody"))["error"]["code"] == "client_not_found"
        await works(caller, app)


async def disconnect(caller: Agent, gateway_id: str, client_id: str, token: str | None = "") -> Any:
    headers = None if token is None else bearer(token or admin_token())
    body = json.dumps({"tenant": "default", "clientId": client_id}).encode()
    subject = subjects.gateway(gateway_id, "disconnect")
    return json.loads((await caller.nats.request(subject, body, 5, headers=headers)).data)


# --- frozen ---


async def test_frozen_gateway_executes_nothing_that_was_sent_meanwhile(gateway: Process, caller: Agent) -> None:
    async with application(gateway.url, {"echo": echo}) as app:
        gateway.freeze()
        try:
            for number in range(20):
                body = {"target": "echo", "parameters": {"n": number}, "requestId": f"r{number}", "timeoutMs": 30_000}
                await caller.tell(app.client_id, body, reply=f"{caller.nats.new_inbox()}")
            async with asyncio.timeout(3):
                with pytest.raises(nats.errors.TimeoutError):
                    await caller.call(app.client_id, "echo", {"n": "last"}, seconds=1.5)
        finally:
            gateway.thaw()

        async def again() -> bool:
            answer = await caller.call(app.client_id, "echo", {"after": "thaw"})
            return bool(answer["status"] == "success")

        await until(again)
        assert commands(app) == [{"after": "thaw"}]


async def test_clients_survive_a_freeze_longer_than_their_ping(gateway: Process, caller: Agent) -> None:
    """The pong lies in the socket when the gateway thaws: it must be read before it is missed."""
    async with application(gateway.url, {"echo": echo}) as app:
        for _ in range(2):
            gateway.freeze()
            with pytest.raises(TimeoutError):
                await app.closed(2.5)
            gateway.thaw()

            async def again() -> bool:
                return bool((await caller.call(app.client_id, "echo"))["status"] == "success")

            await until(again)
        assert app.close_code is None


# --- NATS ---


async def test_sessions_survive_a_restart_of_nats(gateway: Process, caller: Agent, private_nats: NatsServer) -> None:
    async with application(gateway.url, {"echo": echo, "never": never}) as app:
        await caller.tell(app.client_id, {"target": "never", "requestId": "r1"}, reply="_INBOX.lost")
        command = await app.received(type="command")
        private_nats.stop()
        await until(lambda: ready(gateway, 503))
        assert (await get(gateway, "/healthz")).status_code == 200
        answer = {"type": "response", "requestId": command["requestId"], "status": "success", "result": 7}
        await app.send(answer)
        await app.send({"type": "ping"})
        await app.received(type="pong")
        await private_nats.start()
        await until(lambda: ready(gateway, 200))
        await until(lambda: caller.nats.is_connected)
        await works_again(caller, app)
        probe = await caller.ask(app.client_id, {"op": "probe", "requestIds": ["r1"]})
        assert [outcome["result"] for outcome in probe["outcomes"]] == [7]


async def test_client_that_comes_while_nats_is_away_is_sent_elsewhere(
    gateway: Process, private_nats: NatsServer
) -> None:
    private_nats.stop()
    await until(lambda: ready(gateway, 503))
    async with socket_of(gateway.url, app_token()) as socket:
        async with asyncio.timeout(8):
            await socket.wait_closed()
        assert socket.close_code == 1012


async def test_events_while_nats_is_away_are_refused_and_the_socket_stays(
    gateway: Process, private_nats: NatsServer
) -> None:
    async with application(gateway.url) as app:
        private_nats.stop()
        await until(lambda: ready(gateway, 503))
        for number in range(250):
            await app.send({"type": "event", "event": "x", "id": f"e{number}"})
        await until(lambda: len(app.all_received(type="error", code="unavailable")) == 250)
        assert app.close_code is None


async def test_session_that_ends_while_nats_is_away_leaves_no_subscription(
    gateway: Process, caller: Agent, private_nats: NatsServer
) -> None:
    async with application(gateway.url, {"echo": echo}) as stays:
        async with application(gateway.url, {"echo": echo}) as app:
            private_nats.stop()
            await until(lambda: ready(gateway, 503))
            await app.socket.close()
            await app.closed()
        with pytest.raises(TimeoutError):
            await stays.closed(1.5)  # until the gateway has stopped to answer for it
        await private_nats.start()
        await until(lambda: ready(gateway, 200))
        await until(lambda: caller.nats.is_connected)
        await works_again(caller, stays)
        assert await nobody(caller, app.client_id)


# --- its own end ---


async def test_drain_lets_commands_end_and_sends_clients_elsewhere(gateway: Process, caller: Agent) -> None:
    release = asyncio.Event()

    async def slow(parameters: dict[str, Any]) -> str:
        await release.wait()
        return "finished"

    async with application(gateway.url, {"slow": slow, "echo": echo}) as app, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(caller.call(app.client_id, "slow"))
        await app.received(type="command")
        gateway.signal(signal.SIGTERM)

        async def refused() -> bool:
            answer = await caller.call(app.client_id, "echo")
            return bool(answer.get("error", {}).get("code") == "unavailable")

        await until(refused)
        with pytest.raises((OSError, InvalidStatus)):
            await socket_of(gateway.url, app_token())
        assert app.close_code is None
        release.set()
        assert (await call)["result"] == "finished"
        assert await app.closed() == 1012
        assert await gateway.ended() == 0


async def test_drain_does_not_wait_for_ever(gateway: Process, caller: Agent) -> None:
    async with application(gateway.url, {"never": never}) as app, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(caller.call(app.client_id, "never", seconds=10))
        await app.received(type="command")
        gateway.signal(signal.SIGTERM)
        gateway.signal(signal.SIGTERM)
        assert (await call)["error"]["code"] == "client_lost"
        assert await app.closed() == 1012
        assert await gateway.ended(8) == 0


async def test_drain_tells_the_registry(gateway: Process, registry: Registry) -> None:
    async with application(gateway.url) as app:
        await until(lambda: registry.told(app.client_id))
        assert await gateway.terminate() == 0
        assert await app.closed() == 1012
    assert registry.told(app.client_id)[-1] == EndReason.SHUTDOWN


async def test_gateway_ends_while_nats_is_away(gateway: Process, private_nats: NatsServer) -> None:
    async with application(gateway.url) as app:
        private_nats.stop()
        await until(lambda: ready(gateway, 503))
        gateway.signal(signal.SIGTERM)
        assert await app.closed() == 1012
        assert await gateway.ended(10) == 0


async def get(gateway: Process, path: str) -> httpx.Response:
    base = gateway.url.replace("ws://", "http://").removesuffix("/ws")
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(base + path)


async def ready(gateway: Process, status: int) -> bool:
    return (await get(gateway, "/readyz")).status_code == status
