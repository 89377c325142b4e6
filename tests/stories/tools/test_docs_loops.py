"""The loops of docs/tools.md and of the examples, with scripted models; and what docs/mcp.md has people write."""

import asyncio
import json
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace as Has
from typing import Any

import httpx
import pytest
from support.examples import Examples
from support.paths import ROOT
from support.played.app import App
from support.processes.bridge import Bridge
from support.processes.up import finished
from support.settings import agent_token, bearer

EXAMPLES = Examples()
LOOPS = ROOT / "examples/tools"
MAX_LINES = 60
ADD = {
    "type": "function",
    "name": "addTodo",
    "parameters": {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
}


class ScriptedModel:
    """Calls `addTodo`, then tells what came of it, in the words of each provider."""

    def __init__(self) -> None:
        self.chat = Has(completions=Has(create=self._openai))
        self.messages = Has(create=self._anthropic)
        self.models = Has(generate_content=self._gemini)

    def _openai(self, model: str, messages: list[Any], tools: list[Any]) -> Any:
        last = messages[-1]
        if isinstance(last, dict) and last["role"] == "tool":
            return Has(choices=[Has(message=Has(tool_calls=None, content=last["content"]))])
        name = tools[0]["function"]["name"]
        call = Has(id="1", function=Has(name=name, arguments=json.dumps({"title": last["content"]})))
        return Has(choices=[Has(message=Has(tool_calls=[call], content=None))])

    def _anthropic(self, model: str, max_tokens: int, messages: list[Any], tools: list[Any]) -> Any:
        last = messages[-1]["content"]
        if isinstance(last, list):
            assert last[0]["is_error"] is False
            return Has(content=[Has(type="text", text=last[0]["content"])])
        return Has(content=[Has(type="tool_use", id="1", name=tools[0]["name"], input={"title": last})])

    def _gemini(self, model: str, contents: list[Any], config: dict[str, Any]) -> Any:
        part = contents[-1]["parts"][0]
        content = {"role": "model", "parts": []}
        if "function_response" in part:
            text = json.dumps(part["function_response"]["response"])
            return Has(function_calls=None, text=text, candidates=[Has(content=content)])
        name = config["tools"][0]["functionDeclarations"][0]["name"]
        call = Has(name=name, args={"title": part["text"]})
        return Has(function_calls=[call], candidates=[Has(content=content)])


@pytest.fixture
async def app(bridge: Bridge) -> AsyncIterator[App]:
    handlers = {"addTodo": lambda parameters: f"added {parameters['title']}"}
    async with bridge.app(handlers, capabilities=[ADD]) as connected:
        await bridge.listed(connected.client_id)
        yield connected


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini"])
async def test_loop_of_a_provider(bridge: Bridge, app: App, provider: str) -> None:
    names: dict[str, Any] = {"json": json}
    exec(EXAMPLES.take("docs/tools.md", f"def ask_{provider}").code, names)

    def run() -> str:
        url, headers = bridge.agent_apis[0].url, bearer(agent_token())
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as http:
            told: str = names[f"ask_{provider}"](ScriptedModel(), http, "any", "Buy milk")
            return told

    assert json.loads(await asyncio.to_thread(run))["result"] == "added Buy milk"


@pytest.mark.parametrize("name", ["tool_loop.py", "mcp_loop.py"])
async def test_whole_example(bridge: Bridge, app: App, name: str) -> None:
    arguments = (bridge.agent_apis[0].url, agent_token(), "Buy milk")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(LOOPS / name), *arguments, stdout=asyncio.subprocess.PIPE
    )
    code, out, _ = await finished(process, 60)
    assert code == 0
    assert out.decode().startswith("Done: ")
    assert "added Buy milk" in out.decode()


@pytest.mark.parametrize("path", sorted(LOOPS.glob("*.py")), ids=lambda path: path.name)
def test_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MAX_LINES


def test_configurations_that_people_write_can_be_read() -> None:
    cursor = json.loads(EXAMPLES.take("docs/mcp.md", '"mcpServers"').code)
    codex = tomllib.loads(EXAMPLES.take("docs/mcp.md", "bearer_token_env_var").code)
    urls = {cursor["mcpServers"]["agentbridge"]["url"], codex["mcp_servers"]["agentbridge"]["url"]}
    assert urls == {"https://agents.example.com/mcp"}
