"""The library's types, as strict projects read them: of pages, and of Node, which has no types of the DOM."""

import subprocess
from pathlib import Path

import pytest
from support.paths import ROOT
from support.processes import node, npm
from support.processes.javascript import needs_node

LIBRARY = ROOT / "clients/javascript"
STRICT = ["--noEmit", "--strict", "--target", "es2022", "--skipLibCheck", "false"]
OF_PAGES = ["--lib", "es2022,dom,dom.iterable", "--module", "preserve", "--exactOptionalPropertyTypes"]
OF_NODE = ["--lib", "es2022", "--types", "node", "--module", "nodenext"]
COMPILE_SECONDS = 60
USE = """
import { connect, ToolError, type AgentBridge, type CommandInfo, type State, type Tool } from "./agentbridge.mjs";

const bridge: AgentBridge = connect({ url: "wss://gateway.example", token: async () => "", app: { name: "shop" } });
bridge.addEventListener("state", ({ detail }) => {
  const state: State = detail;
  console.log(state.clientId?.length);
});
bridge.addEventListener("command", ({ detail }) => console.log((detail satisfies CommandInfo).durationMs));
bridge.addEventListener("agents", ({ detail: [first] }) => console.log(first?.name));
bridge.addEventListener("other", () => {});
const tool: Tool<{ product: string }> = {
  name: "stock",
  description: "How many there are.",
  annotations: { readOnlyHint: true, own: 1 },
  execute: async ({ product }, { agent, progress, requestId, signal }) => {
    progress(1, { total: 2 });
    if (signal.aborted) throw new ToolError("late", "too late", { requestId });
    return { product, agent: agent.id };
  },
};
await bridge.registerTool(tool, { signal: AbortSignal.timeout(1000) });
bridge.component({ id: "lamp", componentType: "lamp", actions: { on: { execute: () => true } } }).update({ on: true });
const id: string = bridge.emit("sold", { count: 1 }, { source: "lamp" });
bridge.stop(id, { seconds: 1 });
bridge.bridgeModelContext({ tools: ["stock*"] });
globalThis.agentbridge.connect({ url: "wss://gateway.example" }).close();
// @ts-expect-error  a tool needs a description
await bridge.registerTool({ name: "stock", execute: () => 1 });
// @ts-expect-error  there is no such phase
console.log(bridge.state.phase === "lost");
"""


@needs_node
@pytest.mark.parametrize("options", [OF_PAGES, OF_NODE], ids=["pages", "node"])
def test_strict_project_compiles_against_the_types(tmp_path: Path, options: list[str]) -> None:
    npm.install(LIBRARY)
    npm.install(node.PACKAGES)
    (tmp_path / "node_modules").symlink_to(node.PACKAGES / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "agentbridge.d.mts").symlink_to(ROOT / "gateway/static/agentbridge.d.mts")
    (tmp_path / "use.ts").write_text(USE)
    command = [str(LIBRARY / "node_modules/.bin/tsc"), *STRICT, "--preserveSymlinks", *options, "use.ts"]
    compiled = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    assert compiled.stdout == ""
    assert compiled.returncode == 0
