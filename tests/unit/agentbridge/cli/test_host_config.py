"""Entries for hosts: what is in them is what was given, whatever its characters."""

import json
import tomllib
from collections.abc import Callable

import pytest

from agentbridge.cli.host_config import claude, codex, cursor, vscode

COMMANDS = [
    ["/usr/bin/agentbridge", "mcp"],
    ['/home/Ann\'s "files" \\ é 🙂/agentbridge', "mcp", "--data-dir", "/tmp/a b"],
]
NAMES = ["agentbridge", "agentbridge-ann@example.com", "agent bridge", 'a "quoted" name', "🙂", ""]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", NAMES)
def test_codex_reads_what_was_given(name: str, command: list[str]) -> None:
    expected = {"mcp_servers": {name: {"command": command[0], "args": command[1:]}}}
    assert tomllib.loads(codex(name, command)) == expected


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("entry", "key"), [(claude, "mcpServers"), (cursor, "mcpServers"), (vscode, "servers")])
def test_other_hosts_read_what_was_given(
    entry: Callable[[str, list[str]], str], key: str, name: str, command: list[str]
) -> None:
    found = json.loads(entry(name, command))[key][name]
    assert (found["command"], found["args"]) == (command[0], command[1:])
