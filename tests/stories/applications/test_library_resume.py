"""The library beside gateways that keep sessions: a page stays the same client over reloads and lost gateways."""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page
from support.nats.nats_server import NatsServer
from support.nats.relay import relay_to
from support.processes.bridge import Bridge, running_bridge
from support.processes.browser import open_page
from support.processes.pages import Site, site
from support.wait import until

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

TOOLS = """
const later = (name, annotations) => agentbridge.registerTool({name, annotations, description: 'Waits.',
  execute: () => new Promise((done) => {
    const runs = Number(localStorage.getItem(name)) + 1
    localStorage.setItem(name, runs)
    if (runs > 1) done('done again')
  })})
later('once')
later('often', {idempotentHint: true})
"""


async def ready(page: Page) -> str:
    connected = "agentbridge.state.phase === 'ready' && agentbridge.state.clientId"
    return str(await until(lambda: page.evaluate(connected), 30))


async def begun(page: Page, name: str) -> None:
    await until(lambda: page.evaluate(f"localStorage.getItem('{name}') === '1'"), 10)


@pytest.mark.parametrize(
    ("tool", "outcome"), [("once", {"details": {"code": "interrupted"}}), ("often", {"result": "done again"})]
)
async def test_command_under_a_reload_is_answered_once_by_the_same_client(
    bridge: Bridge, pages: Site, tool: str, outcome: dict[str, Any]
) -> None:
    async with open_page(pages.page(TOOLS)) as page, asyncio.TaskGroup() as tasks:
        client_id = await ready(page)
        called = tasks.create_task(bridge.call(client_id, tool))
        await begun(page, tool)
        await page.reload()
        assert outcome.items() <= (await called).json().items()
        assert await ready(page) == client_id


async def test_page_whose_gateway_was_killed_is_the_same_client_at_the_next(bridge: Bridge, pages: Site) -> None:
    async with open_page(pages.page(TOOLS)) as page:
        client_id = await ready(page)
        await bridge.gateways[0].kill()
        await until(lambda: page.evaluate("agentbridge.state.phase === 'waiting'"), 10)
        await bridge.gateways[0].start()
        assert await ready(page) == client_id
        await page.evaluate("localStorage.setItem('once', 1)")
        await until(lambda: succeeds(bridge, client_id), 10)


async def test_page_that_slept_for_longer_than_the_grace_begins_a_fresh_session(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    """Its connection is gone when it wakes, and so is its session: a command that it had begun is nobody's any more."""
    async with (
        running_bridge(
            tmp_path / "bridge", private_nats.url, allowed_origins="http://127.0.0.1:*", resume_grace_seconds=1
        ) as bridge,
        relay_to(urlsplit(bridge.gateway_url).port or 0) as (relay, url),
    ):
        with site(url.replace("nats", "ws")) as pages:
            async with open_page(pages.page(TOOLS)) as page, asyncio.TaskGroup() as tasks:
                client_id = await ready(page)
                await page.evaluate("agentbridge.addEventListener('command', ({detail}) => { window.last = detail })")
                called = tasks.create_task(bridge.call(client_id, "once"))
                await begun(page, "once")
                relay.cut()
                assert (await called).json()["code"] == "client_lost"
                await bridge.listed()
                await until(lambda: page.evaluate("agentbridge.state.phase === 'waiting'"), 10)
                relay.mend()
                again = await ready(page)
                assert await page.evaluate("[last.status, last.message]") == ["cancelled", "the session was lost"]
                await until(lambda: succeeds(bridge, again), 10)


async def succeeds(bridge: Bridge, client_id: str) -> bool:
    return bool((await bridge.call(client_id, "once")).json().get("result") == "done again")
