"""Where the library's tokens come from: logins, logouts, a backend that is away; and what it tells developers."""

import json
import time
from collections.abc import Callable
from threading import Event
from typing import Any

import jwt
import nats
import pytest
from playwright.async_api import Page
from support.processes.bridge import Bridge
from support.processes.browser import open_browser, open_page
from support.processes.pages import Answer, Site
from support.settings import SECRET, agent_token, app_token
from support.wait import subscribed, until

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

TOOLS = "agentbridge.registerTool({name: 'greet', description: 'Greets.', execute: () => 'Hello'})"
SEEN = "document.dispatchEvent(new Event('visibilitychange'))"


def giving(sub: str, **more: Any) -> Callable[[], Answer]:
    return lambda: (200, {"token": app_token(sub, **more)})


def token_of(sub: str, **claims: Any) -> str:
    """Return a token with no claims but these."""
    return jwt.encode({"sub": sub, "role": "app", "aud": "agentbridge", **claims}, SECRET)


async def state(page: Page, phase: str, seconds: float = 15) -> dict[str, str]:
    """Wait until the library is in this phase, and return its state."""
    found = await until(lambda: page.evaluate(f"agentbridge.state.phase === '{phase}' && agentbridge.state"), seconds)
    return dict(found)


async def user_of(bridge: Bridge, page: Page) -> str:
    client_id = (await state(page, "ready"))["clientId"]
    found = await until(lambda: record(bridge, client_id), 5)
    return str(found["user"])


async def record(bridge: Bridge, client_id: str) -> dict[str, Any]:
    answer = await bridge.http.get(f"/api/clients/{client_id}")
    return dict(answer.json()) if answer.status_code == 200 else {}


async def test_page_whose_backend_is_away_goes_on_by_itself_afterwards(bridge: Bridge, pages: Site) -> None:
    pages.token = lambda: (500, {"message": "the database is away"})
    async with open_page(pages.page(TOOLS)) as page:
        assert (await state(page, "waiting"))["reason"] == "the database is away"
        pages.token = giving("ann")
        assert await user_of(bridge, page) == "ann"


async def test_token_is_renewed_while_the_backend_is_away_for_a_moment(bridge: Bridge, pages: Site) -> None:
    pages.token = giving("ann", ttl_seconds=12)
    async with open_page(pages.page(TOOLS)) as page:
        before = (await state(page, "ready"))["clientId"]
        pages.token = lambda: (503, {})
        asked, expires = pages.asked, time.time() + 12
        await until(lambda: pages.asked > asked, 20)
        pages.token = giving("ann")
        asked = pages.asked
        await until(lambda: pages.asked > asked, 15)
        await until(lambda: time.time() > expires, 15)
        assert (await state(page, "ready"))["clientId"] == before
        assert (await bridge.call(before, "greet")).json()["result"] == "Hello"


async def test_logout_ends_the_session_and_a_login_begins_another(bridge: Bridge, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page:
        before = (await state(page, "ready"))["clientId"]
        pages.token = lambda: (401, {})
        await page.evaluate("agentbridge.close(); agentbridge.reconnect()")
        assert (await state(page, "stopped"))["reason"] == "nobody is logged in"
        await until(lambda: is_gone(bridge, before), 5)
        asked = pages.asked
        await page.evaluate(SEEN)
        await until(lambda: pages.asked == asked + 1, 5)
        pages.token = giving("bob")
        await page.evaluate(SEEN)
        assert await user_of(bridge, page) == "bob"


async def is_gone(bridge: Bridge, client_id: str) -> bool:
    return not await record(bridge, client_id)


async def test_another_user_s_token_begins_another_session_without_the_former_s_events(
    bridge: Bridge, pages: Site
) -> None:
    pages.token = giving("ann")
    async with open_page(pages.page(TOOLS)) as page, await nats.connect(bridge.nats_url) as client:
        events = await client.subscribe("agentbridge.default.event.>")
        await subscribed(client)
        before = (await state(page, "ready"))["clientId"]
        pages.token = lambda: (500, {})
        await bridge.gateways[0].kill()
        await state(page, "waiting")
        await page.evaluate("agentbridge.emit('secret', 'of ann')")
        pages.token = giving("bob")
        await bridge.gateways[0].start()
        assert await user_of(bridge, page) == "bob"
        await page.evaluate("agentbridge.emit('greeting', 'of bob')")
        seen = json.loads((await events.next_msg(timeout=10)).data)
        assert (seen["event"], seen["user"]) == ("greeting", "bob")
        assert seen["clientId"] != before


async def test_login_as_somebody_else_is_noticed_when_the_token_is_renewed(bridge: Bridge, pages: Site) -> None:
    pages.token = giving("ann", ttl_seconds=5)
    async with open_page(pages.page(TOOLS)) as page:
        before = (await state(page, "ready"))["clientId"]
        pages.token = giving("bob")
        await until(lambda: page.evaluate(f"agentbridge.state.clientId !== '{before}'"), 15)
        assert await user_of(bridge, page) == "bob"
        await until(lambda: is_gone(bridge, before), 5)


async def test_same_name_in_another_tenant_is_another_user(bridge: Bridge, pages: Site) -> None:
    pages.token = giving("ann", ttl_seconds=5)
    async with open_page(pages.page(TOOLS)) as page:
        before = (await state(page, "ready"))["clientId"]
        pages.token = giving("ann", tenant="other")
        await until(lambda: page.evaluate(f"agentbridge.state.clientId !== '{before}'"), 15)
        after = (await state(page, "ready"))["clientId"]
        await until(lambda: is_gone(bridge, before), 5)
        other = bridge.client(agent_token(tenant="other"))
        body = {"clientId": after, "command": {"target": "greet"}}
        assert (await other.post("/api/command", json=body)).json()["result"] == "Hello"


async def test_page_asks_again_if_its_backend_took_a_request_and_never_answers(bridge: Bridge, pages: Site) -> None:
    over = Event()

    def silent() -> Answer:
        pages.token = giving("ann")
        over.wait(60)
        return 503, {}

    pages.token = silent
    try:
        async with open_page(pages.page(TOOLS)) as page:
            assert (await state(page, "waiting", 30))["reason"] == "this page's own server does not answer"
            assert await user_of(bridge, page) == "ann"
    finally:
        over.set()


@pytest.mark.parametrize("claims", [{}, {"iat": True}], ids=["plain", "with iat"])
async def test_page_whose_clock_is_wrong_asks_for_no_more_tokens_than_others(
    bridge: Bridge, pages: Site, claims: dict[str, Any]
) -> None:
    """By its clock every token has expired, and the next one would be due at once."""
    now = int(time.time())
    pages.token = lambda: (200, {"token": token_of("ann", exp=now + 900, **({"iat": now} if claims else {}))})
    async with open_browser() as context:
        page = await context.new_page()
        await page.clock.install(time=now + 3600)
        await page.goto(pages.page(TOOLS))
        client_id = (await state(page, "ready"))["clientId"]
        for _ in range(4):
            await page.clock.fast_forward(10_000)
            assert (await bridge.call(client_id, "greet")).json()["result"] == "Hello"
            assert pages.asked == 1
        await page.clock.fast_forward(720_000)
        await until(lambda: pages.asked == 2, 10)


async def test_developer_is_told_once_that_the_origin_is_refused(bridge: Bridge, pages: Site) -> None:
    url = pages.page(TOOLS).replace("127.0.0.1", "localhost")
    async with open_browser() as context:
        page, said = await context.new_page(), list[str]()
        page.on("console", lambda message: said.append(message.text) if message.type == "warning" else None)
        await page.goto(url)
        await until(lambda: pages.asked >= 3, 15)
        told = [each for each in said if "AgentBridge" in each]
        origin = url.rstrip("/")
        assert told == [f"AgentBridge: the gateway refuses pages of {origin}: add it to AGENTBRIDGE_ALLOWED_ORIGINS"]


async def test_developer_is_told_that_the_page_s_own_function_gives_no_token(pages: Site) -> None:
    script = """
    const { connect } = agentbridge
    agentbridge.close()
    const url = new URL(document.querySelector('script[src*=agentbridge]').src).origin
    window.failing = connect({url, token: () => { throw new RangeError('no key') }})
    window.spaced = connect({url, token: 'a b'})
    """
    async with open_browser() as context:
        page, said = await context.new_page(), list[str]()
        page.on("console", lambda message: said.append(message.text))
        await page.goto(pages.page(script))
        await until(lambda: page.evaluate("failing.state.phase === 'waiting' && spaced.state.phase === 'waiting'"), 10)
        told = sorted(each for each in said if "AgentBridge" in each)
        assert told[1] == "AgentBridge: the page's own function gave no token: RangeError: no key"
        assert told[0].startswith("AgentBridge: no WebSocket can be made of what was given: SyntaxError")
        assert len(told) == 2


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((404, {}), '/token answered 404 without a token: it should answer {"token": "…"}'),
        ((200, {"token": "nonsense"}), "the gateway refused the token: the token does not verify"),
    ],
)
async def test_developer_is_told_what_is_wrong_with_tokens(pages: Site, answer: Answer, sentence: str) -> None:
    pages.token = lambda: answer
    async with open_browser() as context:
        page, said = await context.new_page(), list[str]()
        page.on("console", lambda message: said.append(message.text))
        await page.goto(pages.page(TOOLS))
        await until(lambda: pages.asked >= 3, 15)
        assert [each for each in said if "AgentBridge" in each] == [f"AgentBridge: {sentence}"]
