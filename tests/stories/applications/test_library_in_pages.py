"""The library in pages under a strict CSP and Trusted Types: tools, questions to the user, presence, metadata."""

import asyncio
from typing import Any

import httpx
import jwt
import pytest
from playwright.async_api import Page, expect
from support.processes.bridge import Bridge
from support.processes.browser import open_browser, open_page
from support.processes.pages import Site
from support.settings import SECRET, agent_token
from support.wait import until

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

TOOLS = """
window.heard = []
agentbridge.registerTool({name: 'greet', description: 'Greets.', execute: ({name}) => `Hello, ${name}!`})
agentbridge.registerTool({name: 'wipe', title: 'Wipe everything', description: 'Removes all there is.',
  annotations: {consequentialHint: true}, execute: () => { heard.push('wiped'); return 'wiped' }})
agentbridge.registerTool({name: 'wait', description: 'Waits.', execute: (_, {signal}) => new Promise((done) => {
  signal.addEventListener('abort', () => { heard.push(signal.reason.message); done() }) })})
agentbridge.addEventListener('agents', ({detail}) => heard.push(detail))
"""


async def ready(page: Page) -> str:
    """Wait until the library is connected, and return the client's id."""
    await holds(page, "agentbridge.state.phase === 'ready'")
    return str(await page.evaluate("agentbridge.state.clientId"))


async def holds(page: Page, condition: str) -> None:
    """Wait until a page finds this true; Playwright's own way is forbidden by the pages' policy."""
    await until(lambda: page.evaluate(condition), 10)


async def test_page_with_a_strict_policy_offers_its_tools(bridge: Bridge, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page:
        client_id = await ready(page)
        answer = await bridge.call(client_id, "greet", {"name": "Ann"})
        assert answer.json()["result"] == "Hello, Ann!"


async def test_user_is_asked_before_a_consequential_tool_and_may_say_no(bridge: Bridge, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page, asyncio.TaskGroup() as tasks:
        client_id = await ready(page)
        dialog = page.get_by_role("dialog")
        for button, outcome in (("Allow", "success"), ("Decline", "declined")):
            asked = tasks.create_task(bridge.call(client_id, "wipe", {"all": True}))
            await expect(dialog).to_contain_text("agent-1 wants to do this for you.")
            await expect(dialog.get_by_role("heading")).to_have_text("Wipe everything")
            await expect(dialog).to_contain_text('"all": true')
            await expect(dialog.get_by_role("button", name="Decline", exact=True)).to_be_focused()
            await dialog.get_by_role("button", name=button, exact=True).click()
            answer = (await asked).json()
            assert (answer.get("details", {}).get("code") or "success") == outcome
        assert await page.evaluate("heard.filter((each) => each === 'wiped')") == ["wiped"]
        records = (await bridge.admin().get("/api/audit", params={"target": "wipe", "clientId": client_id})).json()
        assert [record.get("confirmed") for record in records] == [None, "user"]


async def test_user_is_told_how_much_of_a_long_input_is_not_shown(bridge: Bridge, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page, asyncio.TaskGroup() as tasks:
        client_id = await ready(page)
        dialog = page.get_by_role("dialog")
        asked = tasks.create_task(bridge.call(client_id, "wipe", {"text": "x" * 3000}))
        await expect(dialog).to_contain_text("xxx…\n(and 1016 characters more)")
        await dialog.get_by_role("button", name="Decline", exact=True).click()
        assert (await asked).json()["details"]["code"] == "declined"


async def test_who_asks_and_the_answers_stay_in_sight_however_much_there_is_to_read(
    bridge: Bridge, pages: Site
) -> None:
    script = """agentbridge.registerTool({name: 'pay', title: 'Pay the bill', annotations: {consequentialHint: true},
      description: 'Transfers money. '.repeat(100), execute: () => 'paid'})"""
    async with open_browser(viewport={"width": 390, "height": 700}) as context, asyncio.TaskGroup() as tasks:
        page = await context.new_page()
        await page.goto(pages.page(script))
        asked = tasks.create_task(bridge.call(await ready(page), "pay", {"lines": list(range(200))}))
        dialog = page.get_by_role("dialog")
        for part in (
            dialog.get_by_role("heading", name="Pay the bill"),
            dialog.get_by_text("agent-1 wants to do this for you."),
            *(dialog.get_by_role("button", name=name, exact=True) for name in ("Decline", "Allow")),
        ):
            await expect(part).to_be_in_viewport(ratio=1)
        await dialog.get_by_role("button", name="Allow", exact=True).click()
        assert (await asked).json()["result"] == "paid"


async def test_questions_come_one_by_one_and_all_of_an_agent_can_be_declined(bridge: Bridge, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page, asyncio.TaskGroup() as tasks:
        client_id = await ready(page)
        both = [tasks.create_task(bridge.call(client_id, "wipe")) for _ in range(2)]
        await expect(page.get_by_role("dialog")).to_have_count(1)
        await page.get_by_role("button", name="Decline all from this agent").click()
        third = await bridge.call(client_id, "wipe")
        for answer in (await both[0], await both[1], third):
            assert answer.json()["details"]["code"] == "declined"
        await expect(page.get_by_role("dialog")).to_have_count(0)
        assert "wiped" not in await page.evaluate("heard")


async def test_question_that_nobody_answers_goes_with_its_command(bridge: Bridge, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page:
        client_id = await ready(page)
        answer = await bridge.call(client_id, "wipe", timeout_ms=700)
        assert answer.json()["code"] == "timeout"
        await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_page_that_nobody_sees_declines(bridge: Bridge, pages: Site) -> None:
    hidden = "Object.defineProperty(document, 'visibilityState', {get: () => 'hidden'})\n"
    async with open_page(pages.page(hidden + TOOLS)) as page:
        answer = await bridge.call(await ready(page), "wipe")
        assert answer.json()["details"] == {"code": "declined", "details": {"reason": "hidden"}}


async def test_question_is_left_out_if_the_page_says_so(bridge: Bridge, pages: Site) -> None:
    async with open_page(pages.page(TOOLS, 'data-confirm="never"')) as page:
        answer = await bridge.call(await ready(page), "wipe")
        assert answer.json()["result"] == "wiped"


async def test_stopped_agent_is_cancelled_and_refused_until_it_is_allowed(bridge: Bridge, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page, asyncio.TaskGroup() as tasks:
        client_id = await ready(page)
        waiting = tasks.create_task(bridge.call(client_id, "wait"))
        await holds(page, "agentbridge.agents.some(({id, inFlight}) => id === 'agent-1' && inFlight === 1)")
        await page.evaluate("agentbridge.stop('agent-1')")
        stopped = (await waiting).json()
        assert (stopped["code"], stopped["details"]) == ("cancelled", {"by": "user"})
        assert "stopped by the user" in await page.evaluate("heard")

        refused = await bridge.call(client_id, "greet", {"name": "Ann"})
        other = await call_as(bridge, "agent-2", client_id)
        await page.evaluate("agentbridge.allow('agent-1')")
        await until(lambda: allowed(bridge, client_id), 5)

    assert refused.status_code == httpx.codes.FORBIDDEN
    assert refused.json()["details"]["by"] == "user"
    assert other.status_code == httpx.codes.OK


async def allowed(bridge: Bridge, client_id: str) -> bool:
    return (await bridge.call(client_id, "greet", {"name": "Ann"})).status_code == httpx.codes.OK


async def call_as(bridge: Bridge, sub: str, client_id: str) -> httpx.Response:
    body = {"clientId": client_id, "command": {"target": "greet", "parameters": {"name": "Bob"}}}
    claims = jwt.decode(agent_token(sub), SECRET, ["HS256"], audience="agentbridge")
    token = jwt.encode(claims | {"name": "Bob's helper"}, SECRET)
    return await bridge.client(token).post("/api/command", json=body)


async def test_page_is_told_the_names_of_agents(bridge: Bridge, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page:
        await call_as(bridge, "agent-2", await ready(page))
        await holds(page, "agentbridge.agents.length === 1 && agentbridge.agents[0].inFlight === 0")
        [agent] = await page.evaluate("agentbridge.agents")
        assert (agent["id"], agent["name"]) == ("agent-2", "Bob's helper")


async def test_address_title_and_sight_of_the_page_are_kept_current(bridge: Bridge, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page:
        client_id = await ready(page)

        async def known() -> dict[str, Any]:
            found = (await bridge.http.get(f"/api/clients/{client_id}")).json()
            return dict(found.get("metadata", {}))  # it is not known until the registry has heard of it

        assert await until(known, 30) == {"url": f"{pages.url}/", "title": "A page", "visible": True}
        await page.evaluate("history.pushState(null, '', '/list?page=2#secret=1'); document.title = 'A list'")
        await until(lambda: shows(known, url=f"{pages.url}/list?page=2", title="A list"), 5)
        await page.evaluate("agentbridge.setMetadata({title: null, room: 'kitchen'})")
        await until(lambda: shows(known, title=None, room="kitchen"), 5)


async def shows(known: Any, **expected: Any) -> bool:
    return bool(expected.items() <= (await known()).items())


async def test_tabs_and_frames_are_clients_of_their_own(bridge: Bridge, pages: Site) -> None:
    url = pages.page(TOOLS)
    async with open_browser() as context:
        ids = []
        for _ in range(2):
            page = await context.new_page()
            await page.goto(url)
            ids.append(await ready(page))
        assert len(set(ids)) == 2


UNUSABLE = """
window.outcomes = []
window.circle = {type: 'object'}
circle.properties = {self: circle}
const offer = (name, more) => agentbridge.registerTool({name, description: 'A tool.', execute: () => name, ...more})
  .catch((error) => outcomes.push(`${name} ${error.name}`))
offer('circular', {inputSchema: circle})
offer('big', {inputSchema: {type: 'object', properties: {n: {const: 1n}}}})
offer('long', {description: 'x'.repeat(1e6)})
offer('plain', {annotations: null})
"""


async def offered(bridge: Bridge, client_id: str) -> list[str]:
    return [each["name"] for each in (await bridge.capabilities(clientId=client_id)).get(client_id, [])]


async def test_tool_that_cannot_be_sent_is_refused_and_keeps_no_other_from_agents(bridge: Bridge, pages: Site) -> None:
    async with open_page(pages.page(UNUSABLE)) as page:
        client_id = await ready(page)
        assert await page.evaluate("outcomes") == ["circular TypeError", "big TypeError", "long ToolError"]
        await until(lambda: offered(bridge, client_id), 10)
        assert await offered(bridge, client_id) == ["plain"]
        assert (await bridge.call(client_id, "plain")).json()["result"] == "plain"


async def test_metadata_that_cannot_be_sent_are_refused_where_they_are_set(bridge: Bridge, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page:
        client_id = await ready(page)
        names = await page.evaluate("""[{n: 1n}, {text: 'x'.repeat(17000)}].map((metadata) => {
          try { agentbridge.setMetadata(metadata) } catch (error) { return error.name }
        })""")
        assert names == ["TypeError", "ToolError"]
        await page.evaluate("agentbridge.setMetadata({room: 'kitchen'})")
        await until(lambda: is_in(bridge, client_id, "kitchen"), 5)


async def is_in(bridge: Bridge, client_id: str, room: str) -> bool:
    found = (await bridge.http.get(f"/api/clients/{client_id}")).json()
    return bool(found["metadata"].get("room") == room)


async def test_list_above_what_a_gateway_takes_is_cut_and_its_developer_is_told(bridge: Bridge, pages: Site) -> None:
    script = """for (let n = 0; n < 4; n++) {
      agentbridge.registerTool({name: `t${n}`, description: 'x'.repeat(3e5), execute: () => n})
    }"""
    async with open_browser() as context:
        page, said = await context.new_page(), list[str]()
        page.on("console", lambda message: said.append(message.text))
        await page.goto(pages.page(script))
        client_id = await ready(page)
        await until(lambda: offered(bridge, client_id), 10)
        assert await offered(bridge, client_id) == ["t0", "t1", "t2"]
        assert said == ["AgentBridge: the list of tools has more than 983040 bytes: the last 1 of 4 are left out"]


async def test_progress_that_is_too_large_fails_in_the_tool_and_ends_no_connection(bridge: Bridge, pages: Site) -> None:
    script = """agentbridge.registerTool({name: 'loud', description: 'Tells much.',
      execute: (_, {progress}) => progress(1, {data: 'x'.repeat(2e6)})})"""
    async with open_page(pages.page(script)) as page:
        client_id = await ready(page)
        for _ in range(2):
            assert (await bridge.call(client_id, "loud")).json()["details"]["code"] == "too_large"


async def test_stop_takes_a_day_at_most_and_an_empty_name_for_everybody(bridge: Bridge, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page:
        client_id = await ready(page)
        await page.evaluate("agentbridge.stop('', {seconds: 1e9})")
        [everybody] = await page.evaluate("agentbridge.stoppedAgents")
        assert set(everybody) == {"until"}
        assert everybody["until"] - await page.evaluate("Date.now()") <= 86_400_000
        await until(lambda: refused(bridge, client_id), 5)
        await page.evaluate("agentbridge.allow('')")
        await until(lambda: allowed(bridge, client_id), 5)
        assert await page.evaluate("agentbridge.stoppedAgents") == []
        names = await page.evaluate("""[-1, NaN, 'soon'].map((seconds) => {
          try { agentbridge.stop('agent-1', {seconds}) } catch (error) { return error.name }
        })""")
        assert names == ["RangeError"] * 3


async def refused(bridge: Bridge, client_id: str) -> bool:
    return (await bridge.call(client_id, "greet", {"name": "Ann"})).status_code == httpx.codes.FORBIDDEN
