"""`agentbridge call`: lets an application execute a command, directly over NATS."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import click
import msgspec

from agentbridge.cli import output
from agentbridge.cli.credentials import CommandSettings, connected, tenant_of, token_of
from agentbridge.cli.progress_display import display
from agentbridge.cli.registry_client import RegistryClient
from agentbridge.cli.signals import Signalled, unless_signalled
from agentbridge.commands.help import TeachingCommand
from agentbridge.commands.options import TO_CALL, as_json, duration, needs_settings
from protocol import codec
from protocol.discovery import Query
from protocol.errors import BridgeError, InvalidRequest, UnknownCapability
from protocol.ids import check_token, new_request_id
from protocol.messages import CommandRequest, CommandResponse, check_command, failure
from protocol.runtime.commands.caller import Caller
from protocol.runtime.commands.progress import OnProgress
from protocol.runtime.nats.connection import Connection
from protocol.subjects import ClientAddress

EXIT_FAILED = 1
LAST_WORD_SECONDS = 1.0
_CANCELLED = "cancelled; the application is told to stop"
_CANCELLED_UNHEARD = "cancelled, but NATS does not answer: the application may go on"


@click.command(cls=TeachingCommand)
@click.argument("words", nargs=-1, required=True, metavar="[CLIENT] TARGET [ACTION] [KEY=TEXT | KEY:=JSON]...")
@click.option("--user", help="Instead of CLIENT: the session that this user sees, or saw last.")
@click.option("--app", help="With --user: only sessions of this application.")
@click.option(
    "--timeout",
    type=duration,
    metavar="DURATION",
    default="30s",
    show_default=True,
    help="How long to wait. Gateways have a maximum, 5m by default, and cut longer ones.",
)
@click.option("--request-id", help="Your own id for the command, shown in logs and audit.")
@click.option("--idempotency-key", help="Execute the command only once for this key, however often it is sent.")
@as_json
@needs_settings(*TO_CALL)
def call(
    settings: CommandSettings,
    words: tuple[str, ...],
    user: str | None,
    app: str | None,
    timeout: int,
    as_json: bool,
    **more: Any,
) -> None:
    """Call a function or an action of an application.

    The application CLIENT, or a session of --user, executes TARGET, and the result is printed. TARGET is a function, or
    a component followed by its ACTION. Parameters follow: KEY=TEXT for text, KEY:=JSON for anything else. On a terminal
    a bar shows the application's progress. With --json each progress message is a line on standard error. Ctrl-C,
    SIGTERM and SIGHUP cancel the command, and the application gets the cancel.

    Examples:
      agentbridge call --user ann addTodo title=Milk
      agentbridge call CLIENT addTodo title=Milk
      agentbridge call CLIENT addTodo title=Milk tags:='["home"]' done:=false
      agentbridge call CLIENT todo-list clear_completed
      agentbridge call CLIENT export_report --timeout 5m --json
    """
    client, target, rest = parse_words(words, user, app)
    action, parameters = parse_rest(rest)
    command = _command(client, target=target, action=action, parameters=parameters, timeout_ms=timeout * 1000, **more)
    addressed = _AddressedCommand(client or Query(user=user, app=app, name=target), command)
    click.get_current_context().exit(asyncio.run(_call(settings, addressed, as_json=as_json)))


def parse_words(words: Sequence[str], user: str | None, app: str | None) -> tuple[str | None, str, Sequence[str]]:
    """Return the client (None if `user` is given instead), the target, and the remaining words.

    Raises `click.UsageError` if the client or the target is missing.
    """
    if app is not None and user is None:
        raise click.UsageError("--app goes with --user")
    client, words = (words[0], words[1:]) if user is None else (None, words)
    if not words or "=" in words[0]:
        raise click.UsageError("write CLIENT TARGET, or --user USER TARGET, before parameters")
    return client, words[0], words[1:]


def parse_rest(rest: Sequence[str]) -> tuple[str | None, msgspec.Raw]:
    """Return the action, if one is named, and the parameters as JSON. Raises `click.UsageError`."""
    action = rest[0] if rest and "=" not in rest[0] else None
    parameters: dict[str, msgspec.Raw] = {}
    for pair in rest[1:] if action is not None else rest:
        key, value = _parse_pair(pair)
        if key in parameters:
            raise click.UsageError(f"the parameter {key!r} is given twice")
        parameters[key] = value
    return action, msgspec.Raw(codec.encode(parameters))


def _parse_pair(pair: str) -> tuple[str, msgspec.Raw]:
    name, equals, value = pair.partition("=")
    key = name.removesuffix(":")
    if not equals or not key:
        raise click.UsageError(f"{pair!r} is not a parameter: write key=text or key:=json")
    if key == name:
        return key, msgspec.Raw(codec.encode(value))
    try:
        return key, msgspec.Raw(codec.encode(msgspec.json.decode(value)))
    except (msgspec.DecodeError, RecursionError) as exc:
        raise click.UsageError(f"the value of {key!r} is not JSON: for text write {key}=text") from exc


def _command(client: str | None, **fields: Any) -> CommandRequest:
    try:
        if client is not None:
            check_token(client, "CLIENT")
        return check_command(CommandRequest(**fields))
    except InvalidRequest as exc:
        raise click.UsageError(exc.message) from exc


class _CallDone(Exception):
    """Ends the task group of an answered call at once, because its probes would sleep on for a second."""


class _AddressedCommand(NamedTuple):
    """A command and its client, which is given by its id or chosen among a user's sessions."""

    whom: str | Query
    command: CommandRequest


async def _call(settings: CommandSettings, addressed: _AddressedCommand, *, as_json: bool) -> int:
    """Print the answer, or the error in its place, and return the exit code.

    It is printed before the cancel goes to NATS, because that takes a second if NATS is away.
    """
    token = token_of(settings)
    async with connected(settings) as connection:
        with display(as_json=as_json) as shown:
            try:
                response = await unless_signalled(_converse(connection, addressed, token, shown.on_progress))
            except Signalled as signalled:
                shown.say(_CANCELLED if await connection.answers(LAST_WORD_SECONDS) else _CANCELLED_UNHEARD)
                return signalled.exit_code
        _print(response, as_json=as_json)
        if response.error is None:
            return 0
        await connection.answers(LAST_WORD_SECONDS)  # the command may have been given up: have its `cancel` arrive
        return EXIT_FAILED


async def _session(directory: RegistryClient, query: Query) -> str:
    """Return the id of the session that a user sees, or saw last. Raises `UnknownCapability` if there is none."""
    sessions = [record async for record in directory.clients(query)]
    if not sessions:
        raise UnknownCapability(f"no connected client of {query.user} that this token may see offers `{query.name}`")
    return max(sessions, key=lambda one: (one.state == "active", one.is_visible, one.focused_at or "")).client_id


def _print(response: CommandResponse, *, as_json: bool) -> None:
    if as_json:
        click.echo(output.one_line(response))
        return
    try:
        click.echo(output.readable(response.value()))
    except BridgeError as exc:
        click.ClickException(output.sentence(exc)).show()


async def _converse(
    connection: Connection, addressed: _AddressedCommand, token: str | None, on_progress: OnProgress | None
) -> CommandResponse:
    """Send the command and return its answer, or its error as one."""
    response, directory = None, RegistryClient(connection, tenant_of(token), token)
    try:
        async with asyncio.TaskGroup() as tasks:
            caller = Caller(connection, directory.knows, tasks)
            await caller.start()
            response = await _answer(caller, directory, addressed, token, on_progress)
            raise _CallDone
    except* _CallDone:
        pass
    assert response is not None
    return response


async def _answer(
    caller: Caller,
    directory: RegistryClient,
    addressed: _AddressedCommand,
    token: str | None,
    on_progress: OnProgress | None,
) -> CommandResponse:
    client_id = addressed.whom if isinstance(addressed.whom, str) else None
    request_id = addressed.command.request_id or new_request_id()
    command = msgspec.structs.replace(addressed.command, request_id=request_id)
    try:
        if not isinstance(addressed.whom, str):
            client_id = await _session(directory, addressed.whom)
        assert client_id is not None
        return await caller.call(ClientAddress(tenant_of(token), client_id), command, token, on_progress)
    except BridgeError as exc:
        return failure(request_id, exc, client_id)
