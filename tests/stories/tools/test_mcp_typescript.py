"""The official TypeScript client, the one inside most hosts, against two agent APIs without stickiness."""

import json
from pathlib import Path
from typing import Any

from support.nats.nats_server import NatsServer
from support.played.app import App, Handler, never
from support.processes.bridge import running_bridge
from support.processes.javascript import FOLDER, Program, needs_node, node_module
from support.processes.round_robin import round_robin
from support.settings import agent_token
from support.wait import until

pytestmark = needs_node
CODE = (FOLDER / "mcp_client.mjs").read_text()
HANDLERS: dict[str, Handler] = {"add": lambda parameters: {"added": parameters["title"]}, "never": never, "slow": never}


async def told(program: Program, *words: Any) -> list[Any]:
    """Wait for a line that begins with these words."""
    return await until(lambda: next(iter(all_told(program, *words)), []), 30)


def all_told(program: Program, *words: Any) -> list[Any]:
    lines = [json.loads(line) for line in program.told]
    return [line for line in lines if line[: len(words)] == list(words)]


async def progress_of(app: App) -> None:
    command = await app.received(type="command", target="slow", seconds=30)
    for value in (1, 2, 3):
        await app.send({"type": "progress", "requestId": command["requestId"], "progress": value})
        await until(lambda: True, 1)
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
            await progress_of(app)
            _, text, progress = await told(program, "slow")
            assert (text, progress) == ("done", sorted(set(progress)))
            assert progress[-1:] == [3]
            await until(lambda: len(all_told(program, "aborted")) == 3, 30)
            await until(lambda: len(app.all_received(type="cancel")) == 3, 10)
            assert "there is no tool 'nothing'" in (await told(program, "refused"))[1]
            async with bridge.app(capabilities=["new"]):
                await told(program, "tools", ["add", "never", "new", "slow"])
                await told(program, "changed")
        assert min(proxy.requests) >= 3
