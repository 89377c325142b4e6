"""The proxy's own configuration, run by HAProxy on this machine: each path leads where the table of the docs says."""

import contextlib
import re
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from support.paths import ROOT
from support.played.agent_socket import agent_socket
from support.processes.bridge import Bridge, running_bridge
from support.processes.child import Process
from support.processes.javascript import needs_node, node_app
from support.settings import agent_token, app_token, bearer
from support.wait import until

HAPROXY = shutil.which("haproxy") or ""
CONFIGURATION = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
PATHS = {
    "native": "ws://{}/ws",
    "socketio": "http://{}",
    "actioncable": "ws://{}/cable",
    "document": "ws://{}/",
    "published_sdk": "ws://{}/agent-bridge",
}
pytestmark = [
    needs_node,
    pytest.mark.skipif(not HAPROXY, reason="haproxy is not installed"),
]


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def configuration(bridge: Bridge, port: int, others: list[int]) -> str:
    """Return the file with the ports of this machine, and with processes by their addresses instead of by DNS."""
    text = re.sub(r"(?ms)^resolvers docker\n.*?\n\n", "", CONFIGURATION)
    text = text.replace(" resolvers docker init-addr none", "").replace(":8080", f"127.0.0.1:{port}")
    text = re.sub(r"fd-hard-limit \d+", "fd-hard-limit 4000", text)
    for old, new in zip((8404, 8405), others, strict=True):
        text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    for name, processes in (("gateway", bridge.gateways), ("agent_api", bridge.agent_apis)):
        servers = [f"  server {name}{i} {urlsplit(each.url).netloc} check" for i, each in enumerate(processes)]
        text = re.sub(rf"(?m)^  server-template {name} .*$", "\n".join(servers), text)
    return text


@pytest.fixture
async def bridge(tmp_path: Path, nats_url: str) -> AsyncIterator[Bridge]:
    async with running_bridge(tmp_path, nats_url, gateways=2) as running:
        yield running


@pytest.fixture
async def proxy(bridge: Bridge, tmp_path: Path) -> AsyncIterator[str]:
    """HAProxy in front of the bridge; its host and port."""
    port, *others = free_ports(3)
    file = tmp_path / "haproxy.cfg"
    file.write_text(configuration(bridge, port, others))
    process = Process("haproxy", tmp_path / "haproxy", {})
    process.command = [HAPROXY, "-db", "-f", str(file)]
    process.launch()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            await until(lambda: _is_ready(http), 30)
        yield f"127.0.0.1:{port}"
    finally:
        process.end()


async def _is_ready(http: httpx.AsyncClient) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return (await http.get("/readyz")).status_code == httpx.codes.OK
    return False


async def test_applications_of_all_dialects_and_agents_of_both_meet_at_one_port(bridge: Bridge, proxy: str) -> None:
    async with contextlib.AsyncExitStack() as running:
        apps = [
            await running.enter_async_context(node_app(dialect, path.format(proxy), app_token()))
            for dialect, path in PATHS.items()
        ]
        for app in apps:
            await app.heard("registered", {"status": "success"}, seconds=30)
        await bridge.listed(*(app.client_id for app in apps))
        native = await running.enter_async_context(agent_socket(f"http://{proxy}"))
        original = await running.enter_async_context(agent_socket(f"http://{proxy}", path="/api/agent-bridge"))
        for number, app in enumerate(apps):
            assert (await native.call(app.client_id, "add", {"a": number, "b": 1}))["result"] == number + 1
            call = {"type": "call_function", "id": f"m{number}", "name": "add", "clientId": app.client_id}
            await original.send(call | {"parameters": {"a": number, "b": 2}})
            assert (await original.received(correlationId=f"m{number}"))["data"] == number + 2


async def test_requests_without_an_upgrade_are_answered_by_whom_they_are_for(proxy: str) -> None:
    async with httpx.AsyncClient(base_url=f"http://{proxy}", headers=bearer(agent_token()), trust_env=False) as http:
        polling = await http.get("/socket.io/", params={"EIO": "4", "transport": "polling"})
        assert (polling.status_code, polling.json()["message"]) == (400, "Transport unknown")
        assert (await http.get("/socket.io", params={"transport": "polling"})).json() == polling.json()
        assert "WebSocket" in (await http.get("/cable")).text
        for path in ("/agent-bridge", "/api/agent-bridge", "/api/ws"):
            assert (await http.get(path)).status_code == httpx.codes.UPGRADE_REQUIRED
        assert (await http.get("/metrics")).text == "no such path\n"
