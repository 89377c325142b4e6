"""The official Python client of the Model Context Protocol, with a token."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

from support.settings import agent_token

MODES = ("2026-07-28", "auto", "legacy")


def text_of(result: CallToolResult) -> str:
    """Return the text of a result."""
    return "".join(item.text for item in result.content if isinstance(item, TextContent))


@contextlib.asynccontextmanager
async def mcp_client(url: str, mode: str, token: str | None = None, **options: Any) -> AsyncIterator[Client]:
    """Connect to `/mcp` of an agent API."""
    headers = {"Authorization": f"Bearer {token or agent_token()}"}
    async with httpx2.AsyncClient(headers=headers, timeout=30, trust_env=False) as http:
        transport = streamable_http_client(url, http_client=http)
        async with Client(transport, mode=mode, **options) as client:
            yield client
