"""What a registry answers by HTTP, if it is given a port."""

import asyncio
import json
from pathlib import Path

import httpx
from support.nats.nats_server import NatsServer
from support.processes.child import Process
from support.processes.metrics import figures
from support.settings import environment
from support.wait import until


async def test_registry_with_a_port_answers_probes_and_bounds_whoever_asks(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    registry = Process("registry", tmp_path / "registry", environment(private_nats.url, registry_port=0))
    try:
        await registry.start()
        async with httpx.AsyncClient(base_url=registry.url, trust_env=False) as http:
            codes = {path: (await http.get(path)).status_code for path in ("/healthz", "/readyz", "/nothing")}
            assert codes == {"/healthz": 200, "/readyz": 200, "/nothing": 404}
            assert (await http.post("/readyz")).status_code == 405
            assert (await figures(http))["agentbridge_registry_nats_connected"] == 1
            _, port = registry.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
            writer.write(b"GET /" + b"x" * 20_000)
            async with asyncio.timeout(10):
                assert await reader.read() == b""
            writer.close()
            private_nats.kill()
            await until(lambda: not_ready(http), 10)
            assert (await http.get("/healthz")).status_code == 200
    finally:
        registry.end()


async def not_ready(http: httpx.AsyncClient) -> bool:
    answer = await http.get("/readyz")
    return (answer.status_code, answer.text) == (503, "not ready: NATS is away\n")


async def test_taken_port_of_a_registry_is_one_sentence(tmp_path: Path, private_nats: NatsServer) -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    registry = Process(
        "registry", tmp_path / "registry", environment(private_nats.url, registry_port=port, log_format="json")
    )
    try:
        registry.launch()
        assert await registry.ended() == 2
        assert f"cannot listen on 127.0.0.1 port {port}" in json.loads(registry.log.splitlines()[-1])["message"]
    finally:
        registry.end()
        server.close()
