"""The hooks for React in its strict mode, which mounts each component twice, and where a component is wrong."""

import subprocess
from typing import Any

import pytest
from support.paths import ROOT
from support.processes import npm
from support.processes.bridge import Bridge
from support.processes.browser import open_browser, open_page
from support.processes.javascript import needs_node
from support.processes.pages import Site
from support.wait import until

pytestmark = [pytest.mark.browser, needs_node, pytest.mark.asyncio(loop_scope="module")]

EXAMPLE = ROOT / "examples/todo-react"  # it has React, and a bundler
BUILD = ["--bundle", "--preserve-symlinks", "--format=iife", "--jsx=automatic", "--loader=jsx", "--log-level=warning"]
BUILD_SECONDS = 60
START = """
import { StrictMode, useEffect, useLayoutEffect, useState } from "react"
import { flushSync } from "react-dom"
import { createRoot } from "react-dom/client"
import { AgentBridgeContext, useBridgeState, useComponent, useTool } from "agentbridge/react"
window.told = []
const emit = agentbridge.emit.bind(agentbridge)
agentbridge.emit = (name, ...rest) => { told.push(name); return emit(name, ...rest) }
const render = (element) => {
  const root = document.createElement("div")
  document.body.append(root)
  createRoot(root).render(<StrictMode>{element}</StrictMode>)
}
"""
COUNTER = """
function Counter() {
  const [count, setCount] = useState(0)
  window.setCount = setCount
  useTool({name: "count", description: "Counts.", execute: () => count})
  useComponent({id: "counter", componentType: "counter", properties: {count},
    actions: {add: {execute: () => { flushSync(() => setCount(count + 1)); return count + 1 }}}})
  return <b>{count}</b>
}
render(<Counter />)
"""
TWINS = """
const Twin = () => {
  useComponent({id: "twin", componentType: "twin", actions: {who: {execute: () => "the first"}}})
  return <b>here</b>
}
window.reported = []
addEventListener("error", (event) => { reported.push(event.error.name); event.preventDefault() })
render(<><Twin /><Twin /></>)
"""
QUICK = """
const bridge = Object.assign(new EventTarget(), {state: {phase: "connecting"}, agents: []})
function Phase() {
  const { state } = useBridgeState()
  return <b>{state.phase}</b>
}
function Between() {
  useLayoutEffect(() => { bridge.state = {phase: "ready"} }, []) // after the first render, before anybody listens
}
render(<AgentBridgeContext.Provider value={bridge}><Phase /><Between /></AgentBridgeContext.Provider>)
"""


def built(code: str) -> str:
    """Return a script of this code and all that it imports."""
    npm.install(EXAMPLE)
    command = [str(EXAMPLE / "node_modules/.bin/esbuild"), *BUILD, '--define:process.env.NODE_ENV="development"']
    made = subprocess.run(
        command, cwd=EXAMPLE, input=START + code, capture_output=True, text=True, timeout=BUILD_SECONDS
    )
    assert made.returncode == 0, made.stderr
    return made.stdout


async def offers(bridge: Bridge, page: Any) -> list[dict[str, Any]]:
    client_id = await page.evaluate("agentbridge.state.clientId")
    found = await bridge.capabilities(clientId=client_id) if client_id else {}
    return list(found.get(client_id, []))


async def test_component_in_strict_mode_is_offered_once_and_tells_no_change(bridge: Bridge, pages: Site) -> None:
    async with open_page(pages.page(built(COUNTER))) as page:
        await until(lambda: offers(bridge, page), 15)
        client_id = await page.evaluate("agentbridge.state.clientId")
        assert sorted(each.get("name") or each["id"] for each in await offers(bridge, page)) == ["count", "counter"]
        assert await page.evaluate("told") == []
        for number in (1, 2):
            assert (await bridge.call(client_id, "counter", action="add")).json()["result"] == number
            assert (await bridge.call(client_id, "count")).json()["result"] == number
        assert await page.evaluate("told") == ["state_changed", "state_changed"]


async def test_second_component_of_a_name_is_reported_and_the_application_stays(bridge: Bridge, pages: Site) -> None:
    async with open_browser() as context:
        page = await context.new_page()
        await page.goto(pages.page(built(TWINS)))
        await until(lambda: offers(bridge, page), 15)
        assert set(await page.evaluate("reported")) == {"InvalidStateError"}
        assert await page.locator("b").all_text_contents() == ["here", "here"]
        client_id = await page.evaluate("agentbridge.state.clientId")
        assert (await bridge.call(client_id, "twin", action="who")).json()["result"] == "the first"


async def test_change_before_anybody_listens_is_shown(pages: Site) -> None:
    async with open_page(pages.page(built(QUICK))) as page:
        await until(lambda: shows_ready(page), 10)


async def shows_ready(page: Any) -> bool:
    return bool(await page.locator("b").all_text_contents() == ["ready"])
