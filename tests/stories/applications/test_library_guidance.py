"""Pages that a browser keeps from their gateway: each developer reads once, in the console, what to do."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page
from support.nats.certificates import self_signed
from support.nats.nats_server import free_port
from support.processes.bridge import Bridge
from support.processes.browser import open_browser
from support.processes.pages import Site, site
from support.wait import until

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

# Names of this machine that a browser takes for those of others.
NAMES = "--host-resolver-rules=MAP *.test 127.0.0.1"
MIXED = "AgentBridge: browsers block {}/ws on a page of https: give the gateway a certificate, and a wss: URL"
INSECURE = (
    "AgentBridge: this page is no secure context, so there is no WebMCP, and a reload makes a new client. "
    "Serve it by https, or from localhost"
)
UNREACHABLE = (
    "AgentBridge: {} cannot be reached: the gateway does not run, or connect-src of the page's CSP does not name it"
)
LOCAL = ", or its user must allow this page to reach the local network, for which it has to come by https"
TOOLS = "agentbridge.registerTool({name: 'greet', description: 'Greets.', execute: () => 'Hello'})"


@contextlib.asynccontextmanager
async def opened(url: str, *flags: str, **options: Any) -> AsyncIterator[tuple[Page, list[str]]]:
    """Open a page in a browser that trusts any certificate; give it, and what the library says in the console."""
    async with open_browser(NAMES, *flags, ignore_https_errors=True, **options) as context:
        page, said = await context.new_page(), list[str]()
        page.on("console", lambda message: said.append(message.text) if "AgentBridge" in message.text else None)
        await page.goto(url)
        yield page, said


async def ready(page: Page) -> str:
    """Wait until the library is connected, and return the client's id."""
    return str(
        await until(lambda: page.evaluate("agentbridge.state.phase === 'ready' && agentbridge.state.clientId"), 30)
    )


async def tries_again(pages: Site) -> None:
    """Wait until the library has tried often enough to say something twice."""
    await until(lambda: pages.asked >= 4, 20)


async def test_page_of_https_is_told_that_its_gateway_needs_a_certificate(tmp_path: Path) -> None:
    """Its browser opens no `ws:` to another machine, whether anybody listens there or not."""
    gateway = f"ws://gateway.test:{free_port()}"
    with site(gateway, host="app.test", certificate=self_signed(tmp_path)) as pages:
        async with opened(pages.page_with_library()) as (page, said):
            for asked in (1, 2):
                await until(lambda: page.evaluate("agentbridge.state.phase === 'stopped'"), 15)
                assert (pages.asked, said) == (asked, [MIXED.format(gateway)])
                await page.evaluate("agentbridge.reconnect()")


async def test_page_of_https_may_use_a_gateway_on_its_own_machine(bridge: Bridge, tmp_path: Path) -> None:
    with site(bridge.gateway_url, certificate=self_signed(tmp_path)) as pages:
        async with opened(pages.page(TOOLS)) as (page, said):
            client_id = await ready(page)
            assert (await bridge.call(client_id, "greet")).json()["result"] == "Hello"
            assert said == []


async def test_page_that_is_no_secure_context_works_and_is_told_what_it_lacks(bridge: Bridge) -> None:
    with site(bridge.gateway_url, host="app.test") as pages:
        async with opened(pages.page(TOOLS)) as (page, said):
            assert await page.evaluate("isSecureContext") is False
            first = await ready(page)
            assert (await bridge.call(first, "greet")).json()["result"] == "Hello"
            await page.evaluate("agentbridge.close(); agentbridge.reconnect()")
            await until(lambda: page.evaluate(f"agentbridge.state.clientId !== '{first}'"), 15)
            second = await ready(page)
            assert said == [INSECURE]
            await page.reload()
            assert await ready(page) not in (first, second)


def public(url: str) -> str:
    """Return the flag by which a browser takes the site of this page for one of the internet."""
    return f"--ip-address-space-overrides=127.0.0.1:{urlsplit(url).port}=public"


async def test_page_of_the_internet_that_may_not_reach_the_local_network_is_told_so(
    bridge: Bridge, tmp_path: Path
) -> None:
    with site(bridge.gateway_url, host="app.test", certificate=self_signed(tmp_path)) as pages:
        url = pages.page_with_library()
        async with opened(url, public(url)) as (_, said):
            await tries_again(pages)
            assert said == [UNREACHABLE.format(pages.gateway) + LOCAL]


async def test_page_of_the_internet_without_https_is_told_that_it_may_not_even_ask(bridge: Bridge) -> None:
    with site(bridge.gateway_url, host="app.test") as pages:
        url = pages.page_with_library()
        async with opened(url, public(url)) as (_, said):
            await tries_again(pages)
            assert said == [INSECURE, UNREACHABLE.format(pages.gateway) + LOCAL]


async def test_page_of_the_internet_whose_user_lets_it_reach_the_local_network_is_connected(
    bridge: Bridge, tmp_path: Path
) -> None:
    with site(bridge.gateway_url, host="app.test", certificate=self_signed(tmp_path)) as pages:
        url = pages.page_with_library(TOOLS)
        async with opened(url, public(url), permissions=["local-network-access"]) as (page, said):
            client_id = await ready(page)
            assert (await bridge.call(client_id, "greet")).json()["result"] == "Hello"
            assert said == []


async def test_page_whose_gateway_does_not_run_is_told_once_and_comes_back_by_itself(bridge: Bridge) -> None:
    with site(bridge.gateway_url) as pages:
        gateway = bridge.gateways[0]
        await gateway.kill()
        async with opened(pages.page_with_library(TOOLS)) as (page, said):
            await tries_again(pages)
            assert said == [UNREACHABLE.format(pages.gateway)]
            await gateway.start()
            await ready(page)
