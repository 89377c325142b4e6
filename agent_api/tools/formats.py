"""Lists of tools in the format of each model provider."""

from collections.abc import Callable, Iterable
from typing import Any

from agent_api.tools.views import Tool

Format = Callable[[Iterable[Tool]], list[dict[str, Any]]]


def mcp(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """Return tools in the format of the Model Context Protocol."""
    return [_filled(tool, {"name": tool.name, "inputSchema": tool.schema}) for tool in tools]


def openai(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """Return tools in the format of OpenAI's chat completions, which others have copied."""
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": _described(tool), "parameters": tool.schema},
        }
        for tool in tools
    ]


def anthropic(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """Return tools in the format of Anthropic's messages."""
    return [{"name": tool.name, "description": _described(tool), "input_schema": tool.schema} for tool in tools]


def gemini(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """Return tools in the format of Gemini: one tool with all functions."""
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
