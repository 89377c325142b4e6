"""Without the extra `mcp` everything else works, and a sentence says what to install."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from support.played.agent_socket import agent_socket
from support.played.app import application
from support.processes.up import Up
from support.settings import bearer
from support.wait import until

ABSENT = ("mcp", "mcp_types", "httpx2")
NOT_INSTALLED = "pip install 'agentbridge-nats[mcp]'"


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Up]:
    """A bridge whose Python has no library of the protocol."""
    folder = tmp_path / "absent"
    folder.mkdir()
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n")
    running = Up(tmp_path / "up")
    running.environment["PYTHONPATH"] = str(folder)
    await running.start()
    try:
        yield running
    finally:
        running.end()


async def test_everything_else_works_without_the_library(up: Up) -> None:
    url, token = up.run_file["apiUrl"], up.token("agent")
    handlers = {"add": lambda parameters: {"added": parameters["title"]}}
    async with (
        application(up.run_file["gatewayUrl"], handlers, token=up.token("app")) as app,
        httpx.AsyncClient(base_url=url, headers=bearer(token), trust_env=False, timeout=30) as http,
    ):

        async def listed() -> bool:
            return [tool["name"] for tool in (await http.get("/api/tools")).json().get("tools", ())] == ["add"]

        await until(listed, 10)
        for method in ("POST", "GET"):
            refused = await http.request(method, "/mcp", json={})
            assert (refused.status_code, NOT_INSTALLED in refused.json()["message"]) == (501, True)
        command = {"clientId": app.client_id, "command": {"target": "add", "parameters": {"title": "Milk"}}}
        assert (await http.post("/api/command", json=command)).json()["result"] == {"added": "Milk"}
        assert (await http.post("/api/tools/add", json={"title": "Tea"})).json()["result"] == {"added": "Tea"}
        assert list((await http.get("/api/capabilities")).json()) == [app.client_id]
        assert (await http.get("/openapi.json")).status_code == 200
        async with agent_socket(url, token) as agent:
            answer = await agent.call(app.client_id, "add", {"title": "Jam"})
            assert answer["result"] == {"added": "Jam"}
        called = await up.command("call", app.client_id, "add", "title=Eggs")
        assert (called.code, "Eggs" in called.out) == (0, True)


async def test_command_says_what_to_install(up: Up) -> None:
    ended = await up.command("mcp")
    assert ended.code == 1
    assert NOT_INSTALLED in ended.err
    assert "Traceback" not in ended.err
    assert (await up.command("mcp", "--print-config", "claude")).code == 0
