"""Configuration entries for hosts of the Model Context Protocol, each in the format of its host."""

import json
import re
from collections.abc import Callable, Sequence

Command = Sequence[str]
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def claude(name: str, command: Command) -> str:
    """Return an entry of `claude_desktop_config.json`, or of `.mcp.json` in a folder of Claude Code."""
    return _json({"mcpServers": {name: _program(command)}})


def cursor(name: str, command: Command) -> str:
    """Return an entry of `~/.cursor/mcp.json`, or of `.cursor/mcp.json` in a project."""
    return claude(name, command)


def vscode(name: str, command: Command) -> str:
    """Return an entry of `.vscode/mcp.json`."""
    return _json({"servers": {name: {"type": "stdio", **_program(command)}}})


def codex(name: str, command: Command) -> str:
    """Return an entry of `~/.codex/config.toml`."""
    key = name if _BARE_KEY.fullmatch(name) else _toml(name)
    program, *arguments = map(_toml, command)
    return f"[mcp_servers.{key}]\ncommand = {program}\nargs = [{', '.join(arguments)}]"


HOSTS: dict[str, Callable[[str, Command], str]] = {"claude": claude, "cursor": cursor, "vscode": vscode, "codex": codex}


def _toml(text: str) -> str:
    """Return a string of TOML. One of JSON is, if no character is written as two surrogates."""
    return json.dumps(text, ensure_ascii=False)


def _program(command: Command) -> dict[str, object]:
    return {"command": command[0], "args": list(command[1:])}


def _json(value: object) -> str:
    return json.dumps(value, indent=2)
