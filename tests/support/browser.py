"""A real Chromium, driven by Playwright."""

import contextlib
import os
import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Page, async_playwright

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


@contextlib.asynccontextmanager
async def open_page(url: str) -> AsyncIterator[Page]:
    """Open a page in a browser of its own; at the end, fail where a script of the page's has failed."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = await browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        await page.goto(url)
        yield page
        await browser.close()
        assert not faults


def chromium() -> str:
    """Return the path of a Chromium; where there is none, skip the test, or fail it where one is required."""
    found = os.environ.get("AGENTBRIDGE_TEST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)  # noqa: TID251  a setting of the tests
    if found:
        return found
    missing = f"no browser: none of {', '.join(NAMES)} is on PATH, and AGENTBRIDGE_TEST_CHROMIUM is not set"
    if os.environ.get("AGENTBRIDGE_TEST_REQUIRE_CHROMIUM") == "1":  # noqa: TID251  a setting of the tests
        pytest.fail(missing)
    pytest.skip(missing)
