"""What an operator sees at `/metrics`: how commands end, how long they take, and requests by route and status."""

from pathlib import Path

from support.nats.nats_server import NatsServer
from support.played.app import AppFault, never
from support.processes.bridge import running_bridge
from support.processes.metrics import of_gateway
from support.wait import until

GATEWAY, API = "agentbridge_gateway", "agentbridge_agent_api"


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
            f"{API}_nats_connected 1.0",
        }
