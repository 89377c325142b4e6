"""An agent loop over the Model Context Protocol: `python examples/tools/mcp_loop.py URL TOKEN "Buy milk"`.

It needs the extra `mcp`. The model is scripted; any that calls tools fits in its place.
"""

import asyncio
import sys

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import TextContent, Tool


def model(question: str, tools: list[Tool]) -> str:
    """Return the name of the first tool that takes a title."""
    return next(tool.name for tool in tools if "title" in tool.input_schema.get("properties", {}))


async def main() -> None:
    """Let the model choose a tool, call it, and tell what came of it."""
    url, token, question = sys.argv[1:]
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=60) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
    ):
        tools = (await client.list_tools()).tools
        result = await client.call_tool(model(question, tools), {"title": question})
        text = "".join(item.text for item in result.content if isinstance(item, TextContent))
        print("Refused:" if result.is_error else "Done:", text)


if __name__ == "__main__":
    asyncio.run(main())
