"""Pages of applications in a real browser: which subprotocols it accepts, and pages without an origin of their own."""

import html
from pathlib import Path

import pytest
from playwright.async_api import Page
from support.played.app import ws_url
from support.processes.browser import open_page
from support.processes.gateways import gateway_process
from support.settings import app_token

pytestmark = pytest.mark.browser

OPENING = """([url, subprotocols]) => new Promise((done) => {
  const socket = new WebSocket(url, subprotocols)
  socket.onmessage = ({data}) => { done(JSON.parse(data).type); socket.close() }
  socket.onclose = ({code}) => done(`closed ${code}`)
})"""


def page_without_origin(folder: Path) -> str:
    file = folder / "page.html"
    file.write_text("<!DOCTYPE html><title>an application</title>")
    return file.as_uri()


async def opened_by(page: Page, url: str, *subprotocols: str) -> str:
    """Return how a browser's connection begins: the type of the first frame, or the close code that its page sees."""
    begins: str = await page.evaluate(OPENING, [url, list(subprotocols)])
    return begins


async def test_page_that_offers_its_token_alone_is_connected(tmp_path: Path, shared_nats_url: str) -> None:
    async with (
        gateway_process(tmp_path, shared_nats_url, allowed_origins="null") as gateway,
        open_page(page_without_origin(tmp_path)) as page,
    ):
        url = f"{ws_url(gateway.url)}/ws"
        assert await opened_by(page, url, f"bearer.{app_token()}") == "connection"
        assert await opened_by(page, url, "agentbridge.v1", f"bearer.{app_token()}") == "connection"
        assert await opened_by(page, url, "bearer.nonsense") == "closed 4003"
        assert await opened_by(page, url, "agentbridge.v1") == "closed 4001"


async def test_page_of_a_file_is_connected_only_if_its_origin_is_named(tmp_path: Path, shared_nats_url: str) -> None:
    async with (
        gateway_process(tmp_path, shared_nats_url, allowed_origins="https://app.example.com, file://") as gateway,
        open_page(page_without_origin(tmp_path)) as page,
    ):
        assert await opened_by(page, f"{ws_url(gateway.url)}/ws?token={app_token()}") == "closed 1006"
    async with (
        gateway_process(tmp_path, shared_nats_url, allowed_origins="https://app.example.com, null") as gateway,
        open_page(page_without_origin(tmp_path)) as page,
    ):
        assert await opened_by(page, f"{ws_url(gateway.url)}/ws?token={app_token()}") == "connection"


async def test_sandboxed_frame_is_connected_if_its_origin_is_named(tmp_path: Path, shared_nats_url: str) -> None:
    async with gateway_process(tmp_path, shared_nats_url, allowed_origins="null") as gateway:
        call = (
            f"({OPENING})(['{ws_url(gateway.url)}/ws', ['bearer.{app_token()}']]).then((text) => document.title = text)"
        )
        frame = html.escape(f"<script>{call}</script>")
        file = tmp_path / "frame.html"
        file.write_text(f'<!DOCTYPE html><iframe sandbox="allow-scripts" srcdoc="{frame}"></iframe>')
        async with open_page(file.as_uri()) as page:
            inner = page.frames[1]
            await inner.wait_for_function("document.title")
            assert await inner.title() == "connection"
