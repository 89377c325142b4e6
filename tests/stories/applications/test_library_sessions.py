"""The library where a gateway lets clients come back: over lost connections, reloads, duplicated tabs and frames."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Page
from support.played.resuming_gateway import PlayedSession, ResumingGateway, resuming_gateway
from support.processes.browser import open_browser, open_page
from support.processes.pages import Site, site
from support.wait import until

pytestmark = pytest.mark.browser

TOOLS = """
const later = (name, annotations) => agentbridge.registerTool({name, annotations, description: 'Waits.',
  execute: () => new Promise((done) => {
    const runs = Number(localStorage.getItem(name)) + 1
    localStorage.setItem(name, runs)
    if (runs > 1) done('done again')
    window.finish = () => done('done')
  })})
later('once')
later('often', {idempotentHint: true})
agentbridge.registerTool({name: 'short', description: 'Answers at once.', execute: () => 'short'})
"""


@pytest_asyncio.fixture
async def gateway() -> AsyncIterator[ResumingGateway]:
    async with resuming_gateway() as running:
        yield running


@pytest.fixture
def pages(gateway: ResumingGateway) -> Iterator[Site]:
    with site(gateway.url) as served:
        yield served


async def begun(page: Page, name: str) -> None:
    await until(lambda: page.evaluate(f"localStorage.getItem('{name}') === '1'"), 10)


async def client_id(page: Page) -> str:
    return str(
        await until(
            lambda: page.evaluate("window.agentbridge?.state.phase === 'ready' && agentbridge.state.clientId"), 15
        )
    )


@contextlib.asynccontextmanager
async def tools_page(gateway: ResumingGateway, pages: Site) -> AsyncIterator[tuple[Page, PlayedSession]]:
    """Open a page that offers `TOOLS`; give it with its session when it is registered."""
    async with open_page(pages.page(TOOLS)) as page:
        session = await gateway.session()
        await client_id(page)
        yield page, session


async def test_first_connection_asks_to_come_back_and_later_ones_bring_the_token(
    gateway: ResumingGateway, pages: Site
) -> None:
    async with tools_page(gateway, pages) as (page, session):
        await page.reload()
        await until(lambda: len(session.all("capability")) == 2, 15)
    [first, second] = gateway.opened
    assert first[0] == "resume="
    assert [each.partition(".")[0] for each in first[1]] == ["agentbridge", "bearer"]
    assert (second[0], second[1][2]) == ("", "resume.token-1")
    assert len(gateway.sessions) == 1


async def test_command_that_runs_is_remembered_however_many_others_have_ended(
    gateway: ResumingGateway, pages: Site
) -> None:
    async with open_page(pages.page(TOOLS)) as page:
        session = await gateway.session()
        await session.command("once", "r1")
        await begun(page, "once")
        for number in range(150):
            await session.command("short", f"short-{number}")
        await until(lambda: list(session.awaiting) == ["r1"], 15)
        await page.reload()
        assert (await session.answered("r1"))["error"]["code"] == "interrupted"
        assert await page.evaluate("localStorage.getItem('once')") == "1"


@pytest.mark.parametrize(
    ("tool", "answer"),
    [
        ("once", {"status": "error", "code": "interrupted"}),
        ("often", {"status": "success", "result": "done again"}),
    ],
)
async def test_command_under_a_reload_is_answered_once(
    gateway: ResumingGateway, pages: Site, tool: str, answer: dict[str, str]
) -> None:
    async with open_page(pages.page(TOOLS)) as page:
        session = await gateway.session()
        await session.command(tool, "r1")
        await begun(page, tool)
        before = await client_id(page)
        await page.reload()
        told = await session.answered("r1")
        assert await client_id(page) == before
        assert answer.items() <= {**told.get("error", {}), **told}.items()
        kinds = [frame["type"] for frame in session.received]
        assert kinds.index("capability", 1) < kinds.index("response"), "the gateway must know what is there now"


async def test_command_that_never_arrived_is_sent_again(gateway: ResumingGateway, pages: Site) -> None:
    async with tools_page(gateway, pages) as (page, session):
        session.awaiting["r1"] = {
            "type": "command",
            "requestId": "r1",
            "target": "once",
            "parameters": {},
            "timeoutMs": 30_000,
            "agent": {"id": "agent-1"},
        }
        assert session.socket is not None
        await session.socket.close(1012)
        await begun(page, "once")
        await page.evaluate("finish()")
        assert (await session.answered("r1"))["result"] == "done"


async def test_command_goes_on_while_the_connection_is_lost(gateway: ResumingGateway, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page:
        session = await gateway.session()
        await session.command("once", "r1")
        await begun(page, "once")
        gateway.is_away = True
        assert session.socket is not None
        session.socket.transport.abort()
        await until(lambda: page.evaluate("agentbridge.state.phase === 'waiting'"), 10)
        await page.evaluate("finish()")
        gateway.is_away = False
        assert (await session.answered("r1"))["result"] == "done"
        assert len(gateway.sessions) == 1


async def test_command_that_is_no_longer_awaited_is_aborted(gateway: ResumingGateway, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page:
        session = await gateway.session()
        await page.evaluate("agentbridge.addEventListener('command', ({detail}) => window.last = detail.status)")
        await session.command("once", "r1")
        await begun(page, "once")
        session.awaiting.clear()
        assert session.socket is not None
        await session.socket.close(1012)
        await until(lambda: page.evaluate("window.last === 'cancelled'"), 10)
        assert session.all("response") == []


async def test_event_is_sent_again_until_it_is_acknowledged(gateway: ResumingGateway, pages: Site) -> None:
    async with tools_page(gateway, pages) as (page, session):
        session.acknowledges = False
        await page.evaluate("agentbridge.emit('seen', 1, {id: 'e1'})")
        await until(lambda: len(session.all("event")) == 1, 10)
        session.acknowledges = True
        assert session.socket is not None
        session.socket.transport.abort()
        await until(lambda: len(session.all("event")) == 2, 10)
        await session.socket.close(1012)
        await until(lambda: len(session.all("capability")) == 3, 10)
        await page.evaluate("agentbridge.emit('seen', 2, {id: 'e2'})")
        await until(lambda: len(session.all("event")) == 3, 10)
        assert [frame["id"] for frame in session.all("event")] == ["e1", "e1", "e2"]


async def test_session_that_is_gone_is_followed_by_a_fresh_one(gateway: ResumingGateway, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page:
        session = await gateway.session()
        await session.command("once", "r1")
        await begun(page, "once")
        session.token = "another"  # its grace is over
        assert session.socket is not None
        await session.socket.close(1012)
        await gateway.session(1)
        assert await client_id(page) == "client-2"
        await until(lambda: page.evaluate("agentbridge.state.phase === 'ready'"), 10)


async def test_duplicated_tab_is_somebody_else_and_the_first_stays(gateway: ResumingGateway, pages: Site) -> None:
    async with open_browser() as context:
        first = await context.new_page()
        await first.goto(pages.page(TOOLS))
        assert await client_id(first) == "client-1"
        async with context.expect_page() as opened:
            await first.evaluate("window.open(location.href) && null")  # with a copy of the first tab's storage
        second = await opened.value
        assert await client_id(second) == "client-2"
        await first.reload()
        await second.reload()
        assert [await client_id(first), await client_id(second)] == ["client-1", "client-2"]
        assert len(gateway.sessions) == 2


async def test_frame_of_the_same_origin_is_somebody_else(gateway: ResumingGateway, pages: Site) -> None:
    framing = "const frame = document.createElement('iframe'); frame.src = '/frame'; document.body.append(frame);"
    pages.page("", path="/frame")
    top = f"if (window === window.top) {{ {framing} }}"
    async with open_page(pages.page(TOOLS + top)) as page:
        await gateway.session(1)
        assert await client_id(page) == "client-1"
        await page.reload()
        await until(lambda: len(gateway.opened) == 4, 15)
        assert await client_id(page) == "client-1"
        assert len(gateway.sessions) == 2


async def test_page_that_the_user_comes_back_to_is_the_same_client(gateway: ResumingGateway, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page:
        assert await client_id(page) == "client-1"
        await page.goto(f"{pages.url}/icon.svg")
        await page.go_back()
        session = gateway.sessions[0]
        await until(lambda: page.evaluate("agentbridge.state.phase === 'ready'"), 15)
        await session.command("once", "r1")
        await begun(page, "once")
        await page.evaluate("finish()")
        assert (await session.answered("r1"))["result"] == "done"
        assert len(gateway.sessions) == 1


async def test_page_out_of_the_browser_s_cache_is_the_same_client_and_keeps_its_state(
    gateway: ResumingGateway, pages: Site
) -> None:
    """Playwright switches this cache off: without it, going back loads the page anew."""
    shown = (
        "window.kept = 'still here'; addEventListener('pageshow', (event) => { window.persisted = event.persisted })"
    )
    async with open_browser(without=["--disable-back-forward-cache"]) as context:
        page, said = await context.new_page(), list[str]()
        page.on("console", lambda message: said.append(message.text) if "WebSocket" in message.text else None)
        await page.goto(pages.page(f"{TOOLS}\n{shown}"))
        assert await client_id(page) == "client-1"
        for _ in range(2):
            await page.goto(f"{pages.url}/icon.svg")
            await page.go_back(wait_until="commit")
            await until(lambda: page.evaluate("window.persisted"), 15)
            assert await page.evaluate("kept") == "still here"
            assert await client_id(page) == "client-1"
        session = gateway.sessions[0]
        await session.command("once", "r1")
        await begun(page, "once")
        await page.evaluate("finish()")
        assert (await session.answered("r1"))["result"] == "done"
        assert len(gateway.sessions) == 1
        assert said == []


async def test_closing_ends_the_session_for_good(gateway: ResumingGateway, pages: Site) -> None:
    async with tools_page(gateway, pages) as (page, _):
        await page.evaluate("agentbridge.close()")
        socket = gateway.sessions[0].socket
        assert socket is not None
        async with asyncio.timeout(10):
            await socket.wait_closed()
        assert socket.close_code == 1000
        await page.evaluate("agentbridge.reconnect()")
        await gateway.session(1)
        assert gateway.opened[1][0] == "resume="


async def test_stopped_agent_stays_stopped_at_a_gateway_that_does_not_know_of_it(
    gateway: ResumingGateway, pages: Site
) -> None:
    async with tools_page(gateway, pages) as (page, session):
        await page.evaluate(
            "agentbridge.stop('agent-1', {seconds: 600}); agentbridge.stop(); agentbridge.allow('other')"
        )
        await until(lambda: len(session.all("allow")) == 1, 10)
        session.token = "another"
        await page.reload()
        fresh = await gateway.session(1)
        kinds = [frame["type"] for frame in fresh.received]
        assert kinds[:3] == ["stop", "stop", "capability"]
        [one, everybody] = fresh.all("stop")
        assert one["agentId"] == "agent-1"
        assert 500 < one["seconds"] <= 600
        assert "agentId" not in everybody
        await page.evaluate("agentbridge.allow()")
        await until(lambda: len(fresh.all("allow")) == 1, 10)
        fresh.token = "yet another"
        await page.reload()
        assert (await gateway.session(2)).all("stop") == []


async def test_agent_that_is_allowed_while_the_connection_is_lost_is_allowed_afterwards(
    gateway: ResumingGateway, pages: Site
) -> None:
    """A gateway remembers a stop for its session, over lost connections too."""
    async with tools_page(gateway, pages) as (page, session):
        await page.evaluate("agentbridge.stop('agent-1', {seconds: 600}); agentbridge.stop('agent-2')")
        await until(lambda: len(session.all("stop")) == 2, 10)
        gateway.is_away = True
        assert session.socket is not None
        session.socket.transport.abort()
        await until(lambda: page.evaluate("agentbridge.state.phase === 'waiting'"), 10)
        await page.evaluate("agentbridge.allow('agent-1')")
        gateway.is_away = False
        await until(lambda: len(session.all("capability")) == 2, 15)
        [allowed] = session.all("allow")
        assert allowed["agentId"] == "agent-1"
        assert [frame["agentId"] for frame in session.all("stop")] == ["agent-1", "agent-2", "agent-2"]


FRAMES = """
const load = ([{path, frame}, ...rest]) => {
  frame.src = path
  frame.onload = () => {
    const bridge = frame.contentWindow.agentbridge
    const next = () => { if (bridge.state.phase === 'ready' && rest.length) load(rest.splice(0)) }
    bridge.addEventListener('state', next)
    next()
  }
}
if (location.pathname === '/') {
  const frames = ['/one', '/two'].map((path) => ({path, frame: document.createElement('iframe')}))
  document.body.append(...frames.map(({frame}) => frame))
  load(localStorage.getItem('reverse') ? frames.reverse() : frames)
}
"""


async def test_frames_of_a_page_are_who_they_were_whichever_loads_first(gateway: ResumingGateway, pages: Site) -> None:
    for path in ("/one", "/two"):
        pages.page(FRAMES, path=path)
    async with open_page(pages.page(FRAMES)) as page:
        first = await ids_of_frames(page)
        assert len(set(first.values())) == 3
        await page.evaluate("localStorage.setItem('reverse', 'yes')")
        await page.reload()
        assert await ids_of_frames(page) == first


async def ids_of_frames(page: Page) -> dict[str, str]:
    """Wait until the page and both of its frames are connected; return their ids by path."""
    found: dict[str, str] = {}

    async def complete() -> bool:
        for frame in page.frames:
            known = "window.agentbridge?.state.phase === 'ready' && agentbridge.state.clientId"
            ready = frame.url.startswith("http") and await frame.evaluate(known)
            if ready:
                found[urlsplit(frame.url).path] = ready
        return len(found) == 3

    await until(complete, 20)
    return found


async def test_script_that_is_on_a_page_twice_makes_two_clients_that_stay_who_they_are(
    gateway: ResumingGateway, pages: Site
) -> None:
    library = f"{pages.gateway}/agentbridge.js"
    script = "window.first = agentbridge"
    url = pages.page("", before=script)
    again = f'<script src="{library}" data-token-url="/token" data-app="page"></script>'
    text, content_type = pages.files["/"]
    pages.files["/"] = (text.replace('<script src="/before.js">', f'{again}<script src="/before.js">'), content_type)
    async with open_page(url) as page:
        both = await ids_of_both(page)
        assert len(set(both)) == 2
        for _ in range(2):
            await page.reload()
            assert await ids_of_both(page) == both


async def ids_of_both(page: Page) -> list[str]:
    ready = "[window.first, window.agentbridge].every((each) => each?.state.phase === 'ready')"
    await until(lambda: page.evaluate(ready), 15)
    return list(await page.evaluate("[first.state.clientId, agentbridge.state.clientId]"))
