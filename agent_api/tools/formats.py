"""A list of tools as each provider of models takes it."""

from collections.abc import Callable, Iterable
from typing import Any

from agent_api.tools.views import Tool

Format = Callable[[Iterable[Tool]], list[dict[str, Any]]]


def mcp(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """Return tools in the words of the Model Context Protocol."""
    return [_filled(tool, {"name": tool.name, "inputSchema": tool.schema}) for tool in tools]


def openai(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """Return tools as OpenAI's chat completions take them, and all that copy these."""
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": _described(tool), "parameters": tool.schema},
        }
        for tool in tools
    ]


def anthropic(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """Return tools as Anthropic's messages take them."""
    return [{"name": tool.name, "description": _described(tool), "input_schema": tool.schema} for tool in tools]


def gemini(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """Return tools as Gemini takes them: one tool with all functions."""
    declared = [
        {"name": tool.name, "description": _described(tool), "parametersJsonSchema": tool.schema} for tool in tools
    ]
    return [{"functionDeclarations": declared}] if declared else []


FORMATS: dict[str, Format] = {"openai": openai, "anthropic": anthropic, "gemini": gemini, "mcp": mcp}


def _filled(tool: Tool, entry: dict[str, Any]) -> dict[str, Any]:
    more = {"title": tool.title, "description": tool.description, "annotations": tool.annotations}
    return entry | {name: value for name, value in more.items() if value}


def _described(tool: Tool) -> str:
    return tool.description or tool.title or tool.name
