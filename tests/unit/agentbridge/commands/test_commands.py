"""The command line without a server: help, usage errors, tokens, lines that events become."""

from pathlib import Path

import jwt
import msgspec
import pytest
from click.testing import CliRunner, Result
from support.settings import SECRET

from agentbridge.command_line import cli
from agentbridge.commands.events import describe
from agentbridge.commands.listing import capability_rows
from gateway.settings import GatewaySettings

COMMANDS = [
    "up",
    "gateway",
    "agent-api",
    "registry",
    "token",
    "clients",
    "capabilities",
    "call",
    "events",
    "audit",
    "disconnect",
    "mcp",
    "health",
]


def run(*arguments: str, **variables: str | None) -> Result:
    return CliRunner(env=variables).invoke(cli, arguments)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no `up` runs."""
    monkeypatch.chdir(tmp_path)


def claims(token: str) -> dict[str, object]:
    found: dict[str, object] = jwt.decode(token.strip(), SECRET, algorithms=["HS256"], audience="agentbridge")
    found.pop("exp")
    return found


def test_help_lists_the_commands_in_the_order_of_need() -> None:
    shown = run("--help").output.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in shown] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself_with_examples_or_variables(command: str) -> None:
    shown = run(command, "--help")
    assert shown.exit_code == 0
    assert "\n  Examples:\n    agentbridge " in shown.output or "\n  Environment:\n    AGENTBRIDGE_" in shown.output


def test_help_names_the_longest_wait_that_gateways_allow() -> None:
    longest = next(field for field in msgspec.structs.fields(GatewaySettings) if field.name == "max_command_timeout_ms")
    said = f"Gateways have a maximum, {longest.default // 60_000}m by default, and cut longer ones."
    assert said in " ".join(run("call", "--help").output.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["call"],
        ["call", "c1", "add", "do", "title"],
        ["call", "c1", "add", "--timeout", "soon"],
        ["call", "c1", "add", "--timeout", "0s"],
        ["call", "a.b", "add"],
        ["call", "c1", "add", "--request-id", "two words"],
        ["clients", "--metadata", "colour"],
        ["events", "--client", "*"],
        ["events", "--count", "0"],
        ["token", "--role", "king"],
        ["token", "--tenant", "a.b"],
        ["token", "--sub", ""],
        ["token", "--sub", " "],
        ["audit", "--since", "soon"],
    ],
)
def test_wrong_usage_is_explained_and_exits_with_2(arguments: list[str]) -> None:
    result = run(*arguments, AGENTBRIDGE_JWT_SECRET=SECRET)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr


@pytest.mark.parametrize(
    "arguments", [["audit", "--since", "soon"], ["call", "c1", "add", "--timeout", "soon"], ["token", "--ttl", "soon"]]
)
def test_wrong_duration_is_told_with_its_option(arguments: list[str]) -> None:
    assert f"Invalid value for {arguments[-2]}" in run(*arguments).stderr.replace("'", "")


def test_token_carries_what_was_asked_for() -> None:
    asked = ["--role", "agent", "--sub", "bot", "--tenant", "acme", "--permission", "a", "--permission", "b"]
    limits = ["--user", "ann", "--app", "todo", "--client", "c1", "--client", "c2"]
    result = run("token", *asked, *limits, AGENTBRIDGE_JWT_SECRET=SECRET, AGENTBRIDGE_JWT_ISSUER="me")
    assert claims(result.stdout) == {
        "sub": "bot",
        "role": "agent",
        "tenant": "acme",
        "aud": "agentbridge",
        "iss": "me",
        "permissions": ["a", "b"],
        "users": ["ann"],
        "apps": ["todo"],
        "clients": ["c1", "c2"],
    }


def test_token_without_options_is_an_unlimited_agent_s() -> None:
    result = run("token", AGENTBRIDGE_JWT_SECRET=SECRET)
    assert claims(result.stdout) == {"sub": "agent", "role": "agent", "tenant": "default", "aud": "agentbridge"}


def test_token_without_a_secret_says_what_to_do() -> None:
    result = run("token", AGENTBRIDGE_JWT_SECRET=None)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "AGENTBRIDGE_JWT_SECRET" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_wrong_setting_is_one_line_with_the_variable() -> None:
    result = run("up", AGENTBRIDGE_API_PORT="high")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "AGENTBRIDGE_API_PORT" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_colours_are_for_terminals() -> None:
    assert "\x1b" not in describe_on_terminal(no_colour=True)
    assert "\x1b" in describe_on_terminal(no_colour=False)


def describe_on_terminal(*, no_colour: bool) -> str:
    import click

    @cli.command("paint")
    def paint() -> None:
        click.echo(click.style("x", fg="red"))

    variables = {"NO_COLOR": "1" if no_colour else None}
    try:
        return CliRunner(env=variables).invoke(cli, ["paint"], color=True).output
    finally:
        del cli.commands["paint"]


def test_event_becomes_a_line() -> None:
    message = {
        "event": "todo\x1b_added",
        "clientId": "c1",
        "user": "ann",
        "app": "todo",
        "at": "2026-01-01T09:08:07.654Z",
        "data": {"title": "Milk"},
    }
    assert "09:08:07.654  c1  todo ann  " in describe(message)
    assert r"todo\x1b_added" in describe(message)
    assert describe(message).endswith('{"title":"Milk"}')


def test_change_of_a_client_becomes_a_line() -> None:
    message = {"change": "disconnected", "reason": "gateway_lost", "clientId": "c1", "user": "ann", "app": ""}
    assert "client disconnected  gateway_lost" in describe(message)


def test_capabilities_become_rows() -> None:
    schema = {"type": "object", "properties": {"title": {}, "done": {}}, "required": ["title"]}
    function = {"type": "function", "name": "add", "description": "Adds", "parameters": schema}
    listed = {"type": "component", "id": "list", "actions": ["clear", {"name": "show", "description": "Shows"}]}
    mapped = {"type": "component", "id": "map", "actions": {"pan": None, "zoom": {"parameters": schema}}}
    assert capability_rows(function) == [["add", "", "title [done]", "Adds"]]
    assert capability_rows(listed) == [["list", "clear", "any", ""], ["list", "show", "any", "Shows"]]
    assert capability_rows(mapped) == [["map", "pan", "any", ""], ["map", "zoom", "title [done]", ""]]


@pytest.mark.parametrize(
    ("schema", "shown"),
    [
        ({"type": "object", "additionalProperties": False}, "none"),
        ({"type": "object", "properties": {}}, "none"),
        ({"type": "object", "properties": {}, "additionalProperties": False}, "none"),
        ({"type": "object"}, "any"),
        ({"properties": {}, "additionalProperties": True}, "any"),
        ({"properties": {}, "additionalProperties": {"type": "string"}}, "any"),
        ({"patternProperties": {"^x": {}}, "additionalProperties": False}, "any"),
        (True, "any"),
        (None, "any"),
    ],
)
def test_function_that_takes_nothing_differs_from_one_that_takes_anything(schema: object, shown: str) -> None:
    assert capability_rows({"type": "function", "name": "f", "parameters": schema}) == [["f", "", shown, ""]]


@pytest.mark.parametrize(("name", "meant"), [("TOKN", "; did you mean AGENTBRIDGE_TOKEN?"), ("ELSEWHERE", "")])
def test_mistyped_variable_is_a_warning_beside_the_output(name: str, meant: str) -> None:
    ended = run("token", AGENTBRIDGE_JWT_SECRET=SECRET, **{f"AGENTBRIDGE_{name}": "s3cret"})
    assert ended.stderr == f"warning: AGENTBRIDGE_{name} is not a setting, and has no effect{meant}\n"
    assert ended.exit_code == 0
    assert claims(ended.stdout)["role"] == "agent"
