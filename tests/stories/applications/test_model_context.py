"""WebMCP: pages that know `document.modelContext` only, in browsers that have it and in those that don't."""

import pytest
from playwright.async_api import Page
from support.processes.bridge import Bridge
from support.processes.browser import open_browser
from support.processes.pages import Site
from support.wait import until

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

NAMED = 'data-tools="greet, fail, ear*, temporary deb*"'
EARLY = """
window.hasOwn = 'modelContext' in document
if (hasOwn) {
  const early = {name: 'early', description: 'Was here first.', execute: (input) => ({early: input})}
  document.modelContext.registerTool(early)
  document.modelContext.registerTool({...early, name: 'earFail', execute: () => { throw new Error('secret') }})
}
"""
TOOLS = """
window.outcomes = []
window.end = new AbortController()
const register = (tool, options) => document.modelContext.registerTool(
  {description: 'A tool.', execute: () => null, ...tool}, options).catch((error) => outcomes.push(error.name))
document.modelContext.addEventListener('toolchange', () => outcomes.push('toolchange'))
const schema = {type: 'object', properties: {name: {type: 'string'}}, required: ['name']}
register({name: 'greet', inputSchema: schema,
  execute: ({name}, {signal}) => ({hello: name, hasSignal: signal instanceof AbortSignal})})
register({name: 'fail', execute: () => { throw new RangeError('out of range') }})
register({name: 'debug', annotations: {debugging: true}})
register({name: 'unnamed'})
register({name: 'temporary'}, {signal: end.signal})
register({name: 'greet'})
register({name: 'a bad name'})
register({name: 'silent', description: ''})
"""
BOTH = pytest.mark.parametrize("flags", [[], ["--enable-features=WebMCP"]], ids=["absent", "present"])


async def names(bridge: Bridge, page: Page) -> set[str]:
    client_id = await page.evaluate("agentbridge.state.phase === 'ready' && agentbridge.state.clientId")
    return {each["name"] for each in (await bridge.capabilities()).get(client_id, [])}


@BOTH
async def test_page_that_knows_only_webmcp_serves_agents(bridge: Bridge, pages: Site, flags: list[str]) -> None:
    async with open_browser(*flags) as context:
        page = await context.new_page()
        await page.goto(pages.page(TOOLS, NAMED, EARLY))
        native = bool(flags)
        assert await page.evaluate("hasOwn") is native
        expected = {"greet", "fail", "temporary"} | ({"early", "earFail"} if native else set())
        await until(lambda: offers(bridge, page, expected), 10)
        client_id = await page.evaluate("agentbridge.state.clientId")

        greeted = await bridge.call(client_id, "greet", {"name": "Ann"})
        assert greeted.json()["result"] == {"hello": "Ann", "hasSignal": True}
        assert (await bridge.call(client_id, "greet", {})).json()["code"] == "invalid_parameters"
        failed = (await bridge.call(client_id, "fail")).json()
        assert (failed["message"], failed["details"]) == ("out of range", {"code": "RangeError"})
        if native:
            assert (await bridge.call(client_id, "early", {"a": 1})).json()["result"] == {"early": {"a": 1}}
            assert (await bridge.call(client_id, "earFail")).json()["details"] == {"code": "UnknownError"}

        outcomes = await page.evaluate("outcomes")
        assert outcomes.count("InvalidStateError") == 3
        assert "toolchange" in outcomes
        await page.evaluate("end.abort()")
        await until(lambda: offers(bridge, page, expected - {"temporary"}), 10)


async def offers(bridge: Bridge, page: Page, expected: set[str]) -> bool:
    return await names(bridge, page) == expected


@BOTH
async def test_in_page_agents_use_the_same_tools(bridge: Bridge, pages: Site, flags: list[str]) -> None:
    async with open_browser(*flags) as context:
        page = await context.new_page()
        await page.goto(pages.page(TOOLS, NAMED))
        await until(lambda: offers(bridge, page, {"greet", "fail", "temporary"}), 10)
        listed = await page.evaluate("document.modelContext.getTools().then((all) => all.map(({name}) => name))")
        assert listed == ["debug", "fail", "greet", "temporary", "unnamed"]
        text = await page.evaluate("""document.modelContext.getTools().then((all) =>
            document.modelContext.executeTool(all.find(({name}) => name === 'greet'), {name: 'Bob'}))""")
        assert text == '{"hello":"Bob","hasSignal":true}'
        reason = await page.evaluate("""document.modelContext.getTools().then((all) =>
            document.modelContext.executeTool(all.find(({name}) => name === 'fail'), {})).catch(({name}) => name)""")
        assert reason == "UnknownError"


@BOTH
async def test_circular_schema_is_refused_as_by_the_browser(bridge: Bridge, pages: Site, flags: list[str]) -> None:
    circular = """
    const circle = {type: 'object'}
    circle.properties = {self: circle}
    register({name: 'temporary', inputSchema: circle})
    register({name: 'greet', execute: () => 'Hello'})
    """
    script = TOOLS[: TOOLS.index("const schema")] + circular
    async with open_browser(*flags) as context:
        page = await context.new_page()
        await page.goto(pages.page(script, NAMED))
        await until(lambda: offers(bridge, page, {"greet"}), 10)
        assert "TypeError" in await page.evaluate("outcomes")


async def test_nothing_leaves_the_page_unless_its_author_names_it(bridge: Bridge, pages: Site) -> None:
    script = "window.context = document.modelContext"
    async with open_browser() as context:
        page = await context.new_page()
        await page.goto(pages.page(script))
        await until(lambda: page.evaluate("agentbridge.state.phase === 'ready'"), 10)
        assert await page.evaluate("context") is None
        assert await names(bridge, page) == set()
