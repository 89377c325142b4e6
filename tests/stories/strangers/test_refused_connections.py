"""Applications and agents that are not let in, and those that are, as the log and the counters tell of them."""

import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.nats.nats_server import NatsServer
from support.played.app import application, socket_of
from support.processes.bridge import Bridge, running_bridge
from support.processes.child import Process
from support.processes.metrics import of_gateway
from support.settings import agent_token, app_token, environment
from support.wait import until
from websockets.exceptions import ConnectionClosed, InvalidStatus

ORIGIN = "https://evil.example.com"


async def turned_away(url: str, token: str | None, path: str, **options: Any) -> None:
    with contextlib.suppress(ConnectionClosed, InvalidStatus):
        async with socket_of(url, token, path, **options) as socket:
            await socket.recv()


def lines(process: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.log.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "reason", "shown"),
    [
        ({"token": None}, "no_token", "address='127.0.0.1'"),
        ({"token": "nonsense"}, "unauthenticated", "address='127.0.0.1'"),
        ({"token": app_token(), "origin": ORIGIN}, "origin", f"origin='{ORIGIN}"),
    ],
    ids=["no token", "bad token", "foreign page"],
)
async def test_refusal_is_one_warning_and_counted_by_its_reason(
    tmp_path: Path, private_nats: NatsServer, arguments: dict[str, Any], reason: str, shown: str
) -> None:
    async with running_bridge(tmp_path, private_nats.url, log_format="json") as bridge:
        for process, path, whose, metrics in [
            (bridge.gateways[0], "/ws", "applications", gateway_metrics(bridge)),
            (bridge.agent_apis[0], "/api/ws", "agents", api_metrics(bridge)),
        ]:
            for _ in range(20):
                await turned_away(process.url, path=path, **arguments)
            (found, *_) = [line for line in lines(process) if line["level"] == "warning"]
            assert found["message"].startswith(f"refused 1 {whose}, the last for {reason}: ")
            assert shown in found["message"]
            assert len(lines(process)) < 20
            assert f'connections_refused_total{{reason="{reason}"}} 20.0' in await metrics()


async def test_wrong_role_names_whose_token_it_was(tmp_path: Path, private_nats: NatsServer) -> None:
    async with running_bridge(tmp_path, private_nats.url) as bridge:
        await turned_away(bridge.gateway_url, agent_token("agent-7"), "/ws")
        assert "the last for permission_denied: " in bridge.gateways[0].log
        assert "sub='agent-7'" in bridge.gateways[0].log
        assert "eyJ" not in bridge.log


async def test_application_that_comes_registers_and_goes_is_told_of(tmp_path: Path, private_nats: NatsServer) -> None:
    async with running_bridge(tmp_path, private_nats.url, log_format="json") as bridge:
        gateway = bridge.gateways[0]
        async with application(gateway.url, {"f": dict, "g": dict}) as app:
            pass

        def told() -> list[tuple[str, str]]:
            about = [line for line in lines(gateway) if line.get("clientId") == app.client_id]
            return [(line["level"], line["message"]) for line in about]

        await until(lambda: len(told()) == 3)
        assert told() == [
            ("info", "connected, as user-1 of default"),
            ("info", "registered 2 capabilities"),
            ("info", "disconnected: closed"),
        ]


async def test_first_and_last_words_of_a_process_are_json_for_collectors(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    async with running_bridge(tmp_path, private_nats.url, log_format="json") as bridge:
        for process in bridge.processes:
            said = json.loads(process.out)
            assert {"at", "level", "message", "process"} <= said.keys()
            assert (said["level"], said["message"]) == ("info", "serving")
    wrong = Process("gateway", tmp_path / "wrong", environment(private_nats.url, log_format="json", gateway_port="x"))
    wrong.launch()
    assert await wrong.ended() == 2
    (line,) = lines(wrong)
    assert (line["level"], line["process"], "at" in line) == ("error", "gateway", True)
    assert "AGENTBRIDGE_GATEWAY_PORT" in line["message"]


def gateway_metrics(bridge: Bridge) -> Callable[[], Awaitable[str]]:
    async def text() -> str:
        async with of_gateway(bridge.gateways[0]) as http:
            return (await http.get("/metrics")).text

    return text


def api_metrics(bridge: Bridge) -> Callable[[], Awaitable[str]]:
    async def text() -> str:
        answer: httpx.Response = await bridge.http.get("/metrics")
        return answer.text

    return text
