"""Imports the library when `load()` is called, not before, because that takes 0.7 s and 28 MB."""

from agent_api.mcp.context import McpContext
from agent_api.mcp.endpoint import McpLibrary


def load(context: McpContext) -> McpLibrary:
    """Return the library. Raises `ImportError` if it is not installed."""
    from agent_api.mcp.library import InstalledLibrary

    return InstalledLibrary(context)
