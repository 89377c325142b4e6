"""What happens to those who wait when a process dies, freezes or is restarted."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.nats.nats_server import NatsServer
from support.played.app import App, never
from support.processes.bridge import Bridge, running_bridge
from support.wait import until

BRIDGE_SECONDS = 60


@pytest.fixture
async def two_gateways(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Bridge]:
    """A bridge whose second gateway outlives the first."""
    async with running_bridge(tmp_path / "bridge", private_nats.url, gateways=2) as running:
        yield running


async def _waiting_call(bridge: Bridge, app: App) -> asyncio.Task[httpx.Response]:
    """Send a command that is never answered, and return when the application has it."""
    call = asyncio.get_running_loop().create_task(bridge.call(app.client_id, "never", timeout_ms=30_000))
    await app.received(type="command", target="never")
    return call


def echo(parameters: dict[str, Any]) -> dict[str, Any]:
    """Answer with what was asked."""
    return parameters


async def test_killed_gateway_frees_its_callers_and_its_clients_are_gone(two_gateways: Bridge) -> None:
    async with two_gateways.app({"never": never}) as lost, two_gateways.app({"echo": echo}, gateway=1) as kept:
        await two_gateways.listed(lost.client_id, kept.client_id)
        call = await _waiting_call(two_gateways, lost)
        await two_gateways.gateways[0].kill()
        killed = time.monotonic()
        async with asyncio.timeout(2):
            answer = await call
        assert (answer.status_code, answer.json()["code"]) == (httpx.codes.BAD_GATEWAY, "client_lost")
        await two_gateways.listed(kept.client_id, seconds=5 - (time.monotonic() - killed))
        assert (await two_gateways.call(kept.client_id, "echo", {"n": 1})).json()["result"] == {"n": 1}


async def test_frozen_gateway_frees_its_callers_and_executes_nothing_after_the_thaw(two_gateways: Bridge) -> None:
    gateway = two_gateways.gateways[0]
    async with two_gateways.app({"never": never, "count": echo}) as app:
        await two_gateways.listed(app.client_id)
        call = await _waiting_call(two_gateways, app)
        gateway.freeze()
        try:
            async with asyncio.timeout(3):
                answer = await call
            assert answer.json()["code"] == "client_lost"
            async with asyncio.timeout(4):
                abandoned = await asyncio.gather(*(two_gateways.call(app.client_id, "count") for _ in range(3)))
        finally:
            gateway.thaw()
        assert {answer.json()["code"] for answer in abandoned} <= {"client_lost", "client_not_found", "unavailable"}
        await two_gateways.listed(app.client_id)
        after = await until(lambda: _succeeded(two_gateways, app), 5)
        assert after is not None
        assert after.json()["result"] == {"after": "thaw"}
        executed = [frame["parameters"] for frame in app.all_received(type="command", target="count")]
        assert executed == [{"after": "thaw"}]


async def _succeeded(bridge: Bridge, app: App) -> httpx.Response | None:
    answer = await bridge.call(app.client_id, "count", {"after": "thaw"})
    return answer if answer.status_code == httpx.codes.OK else None


async def test_commands_flow_without_a_registry(bridge: Bridge) -> None:
    async with bridge.app({"echo": echo}) as app:
        await bridge.listed(app.client_id)
        await bridge.registries[0].kill()
        assert (await bridge.call(app.client_id, "echo", {"n": 1})).json()["result"] == {"n": 1}
        async with bridge.app({"echo": echo}) as late:
            assert (await bridge.call(late.client_id, "echo", {"n": 2})).json()["result"] == {"n": 2}
        assert list(await bridge.capabilities()) == [app.client_id]
        assert (await bridge.http.get("/readyz")).status_code == httpx.codes.OK


async def test_all_reconnect_when_nats_is_restarted(bridge: Bridge, private_nats: NatsServer) -> None:
    async with bridge.app({"echo": echo}) as before:
        await bridge.listed(before.client_id)
        private_nats.stop()
        await private_nats.start()
        returned = time.monotonic()
        async with asyncio.timeout(5):
            assert await until(lambda: _echoed(bridge, before), 5)
        async with bridge.app({"echo": echo}) as after:
            await bridge.listed(before.client_id, after.client_id, seconds=5 - (time.monotonic() - returned))
        assert all(process.running for process in bridge.processes)


async def test_clients_are_registered_again_when_nats_comes_back_empty(
    bridge: Bridge, private_nats: NatsServer
) -> None:
    async with bridge.app({"echo": echo}) as app:
        await bridge.listed(app.client_id)
        private_nats.stop()
        private_nats.wipe()
        await private_nats.start()
        await until(lambda: _echoed(bridge, app), 5)
        await bridge.listed(app.client_id, seconds=10)


async def test_command_waits_a_second_for_nats_and_is_refused_at_once_after(
    bridge: Bridge, private_nats: NatsServer
) -> None:
    async with bridge.app({"echo": echo}) as app:
        await bridge.listed(app.client_id)
        private_nats.stop()
        first = await bridge.call(app.client_id, "echo")
        assert first.json()["code"] == "unavailable"
        async with asyncio.timeout(0.5):
            second = await bridge.call(app.client_id, "echo")
        assert (second.status_code, second.json()["retryable"]) == (httpx.codes.SERVICE_UNAVAILABLE, True)
        await private_nats.start()
        await until(lambda: _echoed(bridge, app), 5)


async def test_command_sent_during_a_restart_is_executed_after_it(bridge: Bridge, private_nats: NatsServer) -> None:
    async with bridge.app({"echo": echo}) as app:
        await bridge.listed(app.client_id)
        private_nats.stop()
        call = asyncio.get_running_loop().create_task(bridge.call(app.client_id, "echo", {"n": 3}))
        await private_nats.start()
        async with asyncio.timeout(5):
            answer = await call
        assert answer.json().get("result", answer.json().get("code")) in ({"n": 3}, "unavailable")


async def test_answer_that_nats_lost_is_recovered(bridge: Bridge, private_nats: NatsServer) -> None:
    release = asyncio.Event()

    async def slow(_: dict[str, Any]) -> str:
        await release.wait()
        return "done"

    async with bridge.app({"slow": slow}) as app:
        await bridge.listed(app.client_id)
        call = asyncio.get_running_loop().create_task(bridge.call(app.client_id, "slow", timeout_ms=20_000))
        await app.received(type="command", target="slow")
        private_nats.stop()
        release.set()
        await private_nats.start()
        async with asyncio.timeout(10):
            answer = await call
        assert (answer.status_code, answer.json().get("result")) == (httpx.codes.OK, "done")


async def _echoed(bridge: Bridge, app: App) -> bool:
    number = next(_numbers)
    answer = await bridge.call(app.client_id, "echo", {"n": number})
    return answer.status_code == httpx.codes.OK and answer.json()["result"] == {"n": number}


_numbers = itertools.count(100)
