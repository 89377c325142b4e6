"""A real Chromium, driven by Playwright."""

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from playwright.async_api import BrowserContext, ConsoleMessage, Page, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 10_000
OF_BROWSER = (
    "WebSocket connection to",
    "Failed to load resource",
    "Access to fetch at",
    "Mixed Content",
    "WebMCP tool execution failed",
)


@contextlib.asynccontextmanager
async def open_page(url: str) -> AsyncIterator[Page]:
    """Open a page in a browser of its own; at the end, fail if a script of any page of it has failed."""
    async with open_browser() as context:
        page = await context.new_page()
        await page.goto(url)
        yield page


@contextlib.asynccontextmanager
async def open_browser(*flags: str, without: Sequence[str] = (), **options: Any) -> AsyncIterator[BrowserContext]:
    """Run a browser; at the end, fail if a script of its pages has failed, or written an error to the console.

    What the browser itself writes about servers that do not answer and tools that throw is no fault of a page's.
    `without` are flags that Playwright would give it; the other options are those of a context.
    """
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium(), args=[*FLAGS, *flags], ignore_default_args=without
        )
        context = await browser.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        faults: list[str] = []
        context.on("weberror", lambda error: faults.append(str(error.error)))
        context.on("console", lambda said: faults.append(said.text) if _is_fault(said) else None)
        yield context
        await browser.close()
        assert not faults, faults


def _is_fault(said: ConsoleMessage) -> bool:
    return said.type == "error" and not said.text.startswith(OF_BROWSER)


def chromium() -> str:
    """Return the path of a Chromium; where there is none, skip the test, or fail it where one is required."""
    found = os.environ.get("AGENTBRIDGE_TEST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)  # noqa: TID251  a setting of the tests
    if found:
        return found
    missing = f"no browser: none of {', '.join(NAMES)} is on PATH, and AGENTBRIDGE_TEST_CHROMIUM is not set"
    if os.environ.get("AGENTBRIDGE_TEST_REQUIRE_CHROMIUM") == "1":  # noqa: TID251  a setting of the tests
        pytest.fail(missing)
    pytest.skip(missing)
