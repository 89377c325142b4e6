"""The official TypeScript client, the one inside most hosts, against two agent APIs without stickiness."""

import json
from pathlib import Path
from typing import Any

from support.nats.nats_server import NatsServer
from support.played.app import App, Handler, never
from support.processes.bridge import running_bridge
from support.processes.javascript import FOLDER, Program, needs_node, node_module
from support.processes.round_robin import round_robin
from support.settings import agent_token, app_token
from support.wait import until

pytestmark = needs_node
CODE = (FOLDER / "mcp_client.mjs").read_text()
TWO_PRINCIPALS = (FOLDER / "mcp_principal.mjs").read_text()
HANDLERS: dict[str, Handler] = {"add": lambda parameters: {"added": parameters["title"]}, "never": never, "slow": never}


async def told(program: Program, *words: Any) -> list[Any]:
    """Wait for a line that begins with these words."""
    return await until(lambda: next(iter(all_told(program, *words)), []), 30)


def all_told(program: Program, *words: Any) -> list[Any]:
    lines = [json.loads(line) for line in program.told]
    return [line for line in lines if line[: len(words)] == list(words)]


async def progress_of(app: App, program: Program) -> None:
    """Tell how far the command `slow` has come, each time when the client has heard the last; then answer it."""
    command = await app.received(type="command", target="slow", seconds=30)
    for value in (1, 2, 3):
        await app.send({"type": "progress", "requestId": command["requestId"], "progress": value})
        await told(program, "progress", value)
    await app.send({"type": "response", "requestId": command["requestId"], "status": "success", "result": "done"})


async def test_everything_works(tmp_path: Path, private_nats: NatsServer) -> None:
    async with (
        running_bridge(tmp_path, private_nats.url, agent_apis=2) as bridge,
        round_robin([process.url for process in bridge.agent_apis]) as proxy,
        bridge.app(HANDLERS) as app,
    ):
        await bridge.listed(app.client_id)
        names = {"url": f"{proxy.url}/mcp", "token": agent_token()}
        async with node_module(CODE, names) as program:
            assert await told(program, "tools") == ["tools", ["add", "never", "slow"]]
            assert await told(program, "result") == ["result", {"added": "Milk"}]
            await progress_of(app, program)
            assert await told(program, "slow") == ["slow", "done", [1, 2, 3]]
            await until(lambda: len(all_told(program, "aborted")) == 3, 30)
            await until(lambda: len(app.all_received(type="cancel")) == 3, 10)
            assert "there is no tool 'nothing'" in (await told(program, "refused"))[1]
            async with bridge.app(capabilities=["new"]):
                await told(program, "tools", ["add", "never", "new", "slow"])
                await told(program, "changed")
        assert min(proxy.requests) >= 3


async def test_neither_of_two_principals_sees_the_others_tools(tmp_path: Path, private_nats: NatsServer) -> None:
    async with (
        running_bridge(tmp_path, private_nats.url, agent_apis=2) as bridge,
        round_robin([process.url for process in bridge.agent_apis]) as proxy,
        bridge.app({"hers": lambda _: "ann"}, token=app_token("ann")),
        bridge.app({"his": lambda _: "bob"}, token=app_token("bob")),
    ):
        for user, own, others in (("ann", "hers", "his"), ("bob", "his", "hers")):
            token = agent_token(f"agent-of-{user}", limits={"users": [user]})
            names = {"url": f"{proxy.url}/mcp", "token": token, "own": own, "others": others}
            async with node_module(TWO_PRINCIPALS, names) as program:
                assert await told(program, "tools") == ["tools", [own], [own]]
                assert await told(program, "result") == ["result", user]
                assert f"there is no tool '{others}'" in (await told(program, "refused"))[1]
        assert min(proxy.requests) >= 3
