"""What an operator sees at `/metrics`: how commands end, how long they take, and requests by route and status."""

import asyncio
import re
from pathlib import Path

import httpx
from support.nats.nats_server import NatsServer, free_port
from support.paths import ROOT
from support.played.agent_socket import agent_socket
from support.played.app import AppFault, never
from support.processes.bridge import running_bridge
from support.processes.metrics import of_gateway
from support.wait import until

from protocol.errors import Code
from protocol.runtime.websocket.refused_connections import REASONS

GATEWAY, API, REGISTRY = "agentbridge_gateway", "agentbridge_agent_api", "agentbridge_registry"


def fail(parameters: dict[str, object]) -> None:
    raise AppFault("no", "E")


async def test_commands_are_counted_by_outcome_and_requests_by_route(tmp_path: Path, private_nats: NatsServer) -> None:
    handlers = {"echo": lambda given: given, "fail": fail, "never": never}
    async with running_bridge(tmp_path, private_nats.url) as bridge, bridge.app(handlers) as app:
        await bridge.listed(app.client_id)
        for _ in range(3):
            assert (await bridge.call(app.client_id, "echo")).status_code == 200
        assert (await bridge.call(app.client_id, "fail")).status_code == 500
        assert (await bridge.call(app.client_id, "never", timeout_ms=100)).status_code == 504
        assert (await bridge.call(app.client_id, "nothing")).status_code == 404
        assert (await bridge.http.get(f"/api/clients/{app.client_id}")).status_code == 200
        for path in ("/no-such-path", "/another"):
            assert (await bridge.http.get(path)).status_code == 404

        async def seen() -> bool:
            async with of_gateway(bridge.gateways[0]) as http:
                lines = set((await http.get("/metrics")).text.splitlines())
            return lines >= {
                f'{GATEWAY}_commands_total{{outcome="success"}} 3.0',
                f'{GATEWAY}_commands_total{{outcome="command_failed"}} 1.0',
                f'{GATEWAY}_commands_total{{outcome="timeout"}} 1.0',
                f'{GATEWAY}_commands_total{{outcome="unknown_capability"}} 1.0',
                f"{GATEWAY}_command_duration_seconds_count 5.0",
                f"{GATEWAY}_connections_opened_total 1.0",
                f"{GATEWAY}_connections_open 2.0",  # the application, and whoever asks
                f"{GATEWAY}_nats_connected 1.0",
            }

        await until(seen)
        lines = set((await bridge.http.get("/metrics")).text.splitlines())
        assert lines >= {
            f'{API}_http_requests_total{{route="/api/command",status="200"}} 3.0',
            f'{API}_http_requests_total{{route="/api/command",status="500"}} 1.0',
            f'{API}_http_requests_total{{route="/api/command",status="504"}} 1.0',
            f'{API}_http_requests_total{{route="/api/command",status="404"}} 1.0',
            f'{API}_http_requests_total{{route="/api/clients/{{id}}",status="200"}} 1.0',
            f'{API}_http_requests_total{{route="other",status="404"}} 2.0',
            f'{API}_commands_total{{outcome="success"}} 3.0',
            f'{API}_commands_total{{outcome="command_failed"}} 1.0',
            f'{API}_commands_total{{outcome="timeout"}} 1.0',
            f'{API}_commands_total{{outcome="unknown_capability"}} 1.0',
            f"{API}_command_duration_seconds_count 6.0",
            f"{API}_nats_connected 1.0",
        }


async def test_http_answers_of_every_process_are_counted_by_route(tmp_path: Path, private_nats: NatsServer) -> None:
    async with running_bridge(tmp_path, private_nats.url, registry_port=free_port()) as bridge, bridge.app({}):
        async with of_gateway(bridge.gateways[0]) as http:
            known = {"If-None-Match": (await http.get("/agentbridge.js")).headers["ETag"]}
            assert (await http.get("/agentbridge.js", headers=known)).status_code == 304
            for path, status in {"/healthz": 200, "/readyz": 200, "/ws": 426, "/nowhere": 404, "/else": 404}.items():
                assert (await http.get(path)).status_code == status
            assert (await http.post("/readyz")).status_code == 405
            await http.get("/metrics")
            assert requests(GATEWAY, (await http.get("/metrics")).text) == {
                ("/agentbridge.js", "200"): 1,
                ("/agentbridge.js", "304"): 1,
                ("/healthz", "200"): 1,
                ("/readyz", "200"): 1,
                ("/readyz", "405"): 1,
                ("/ws", "101"): 1,
                ("/ws", "426"): 1,
                ("other", "404"): 2,
                ("/metrics", "200"): 1,
            }
        async with httpx.AsyncClient(base_url=bridge.registries[0].url, trust_env=False) as http:
            for path, status in {"/healthz": 200, "/readyz": 200, "/nowhere": 404}.items():
                assert (await http.get(path)).status_code == status
            await http.get("/metrics")
            assert requests(REGISTRY, (await http.get("/metrics")).text) == {
                ("/healthz", "200"): 1,
                ("/readyz", "200"): 1,
                ("/metrics", "200"): 1,
                ("other", "404"): 1,
            }
        async with agent_socket(bridge.agent_apis[0].url):
            assert (await bridge.http.get("/api/ws")).status_code == 426
            counts = requests(API, (await bridge.http.get("/metrics")).text)
            assert {status: count for (route, status), count in counts.items() if route == "/api/ws"} == {
                "101": 1,
                "426": 1,
            }


async def test_command_that_reaches_no_gateway_is_counted_by_the_agent_api(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    async with running_bridge(tmp_path, private_nats.url) as bridge:
        async with bridge.app({"never": never}) as app:
            await bridge.listed(app.client_id)
            calling = asyncio.ensure_future(bridge.call(app.client_id, "never"))  # noqa: TID251  it is awaited below
            await app.received(type="command")
            await bridge.gateways[0].kill()
            assert (await calling).status_code == 502
        lines = set((await bridge.http.get("/metrics")).text.splitlines())
        assert f'{API}_commands_total{{outcome="client_lost"}} 1.0' in lines


async def test_every_process_serves_its_metrics_from_its_start(tmp_path: Path, private_nats: NatsServer) -> None:
    """A series that comes with its first error has no rate for that error."""
    async with running_bridge(tmp_path, private_nats.url, registry_port=free_port()) as bridge:
        [registry] = bridge.registries
        async with of_gateway(bridge.gateways[0]) as at_gateway, httpx.AsyncClient(trust_env=False) as plain:
            told = {
                GATEWAY: (await at_gateway.get("/metrics")).text,
                API: (await bridge.http.get("/metrics")).text,
                REGISTRY: (await plain.get(f"{registry.url}/metrics")).text,
            }
    for process, text in told.items():
        names = re.findall(r"^# TYPE (\w+) \w+$", text, re.MULTILINE)
        assert sorted(names) == sorted(f"{process}_{name}" for name in documented(process))
    for process in (GATEWAY, API):
        assert series(told[process], "commands_total") == {f'outcome="{outcome}"' for outcome in ("success", *Code)}
        assert series(told[process], "connections_refused_total") == {f'reason="{reason}"' for reason in REASONS}
    assert series(told[REGISTRY], "logins_refused_total") == {'reason="unauthenticated"', 'reason="permission_denied"'}
    shares = {process: series(text, "shares_used_percent") for process, text in told.items()}
    connections = ("connections", "input", "output")
    assert shares == {
        GATEWAY: {f'of="{share}"' for share in (*connections, "messages", "events")},
        API: {f'of="{share}"' for share in (*connections, "commands", "tools", "streams")},
        REGISTRY: {'of="questions"', 'of="logins"'},
    }


def documented(process: str) -> list[str]:
    """Return the metrics of a process in the table of docs/deployment.md."""
    table = (ROOT / "docs/deployment.md").read_text().partition("## Metrics")[2]
    rows = re.findall(r"^\| `(\w+)` \| ([\w ,]+) \| (?:gauge|counter|histogram) \|", table, re.MULTILINE)
    everyone = {"all": [GATEWAY, API, REGISTRY], "both": [GATEWAY, API]}
    named = {"gateway": GATEWAY, "agent API": API, "registry": REGISTRY}
    return [name for name, of in rows if process in (everyone.get(of) or [named[one] for one in of.split(", ")])]


def series(text: str, name: str) -> set[str]:
    """Return the labels of a metric's series."""
    return set(re.findall(rf"^agentbridge_\w+_{name}{{(.*)}} ", text, re.MULTILINE))


def requests(process: str, text: str) -> dict[tuple[str, str], int]:
    """Return the answers over HTTP by route and status, of which there are some."""
    found = re.findall(rf'^{process}_http_requests_total{{route="(.*)",status="(.*)"}} (\d+)', text, re.MULTILINE)
    return {(route, status): int(count) for route, status, count in found if int(count)}
