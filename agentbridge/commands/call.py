"""`agentbridge call`: have an application execute a command, directly over NATS."""

import asyncio
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from agentbridge import output
from agentbridge.commands.help import Command
from agentbridge.commands.options import TO_CALL, as_json, duration, needs_settings
from agentbridge.credentials import CommandSettings, connected, tenant_of, token_of
from agentbridge.directory import Directory
from agentbridge.progress import display
from agentbridge.signals import Signalled, unless_signalled
from protocol import codec
from protocol.errors import BridgeError, InvalidRequest
from protocol.ids import check_token, new_request_id
from protocol.messages import CommandRequest, CommandResponse, check_command, failure
from protocol.runtime.caller import Caller
from protocol.runtime.listening import OnProgress
from protocol.runtime.nats import Connection
from protocol.subjects import ClientAddress

EXIT_FAILED = 1
LAST_WORD_SECONDS = 1.0
_CANCELLED = "cancelled; the application is told to stop"
_CANCELLED_UNHEARD = "cancelled, but NATS does not answer: the application may go on"


@click.command(cls=Command)
@click.argument("client")
@click.argument("target")
@click.argument("rest", nargs=-1, metavar="[ACTION] [KEY=TEXT | KEY:=JSON]...")
@click.option(
    "--timeout",
    type=duration,
    metavar="DURATION",
    default="30s",
    show_default=True,
    help="How long to wait; gateways cut a longer one to their maximum, which is 5m unless set otherwise.",
)
@click.option("--request-id", help="Your own id for the command, for logs and audit.")
@click.option("--idempotency-key", help="A key under which the command is executed once, however often it is sent.")
@as_json
@needs_settings(*TO_CALL)
def call(
    settings: CommandSettings, client: str, target: str, rest: tuple[str, ...], timeout: int, as_json: bool, **more: Any
) -> None:
    """Have an application do something.

    The application CLIENT executes TARGET, and its result is printed. TARGET is a function, or a component followed
    by its ACTION. Parameters follow: KEY=TEXT for text, KEY:=JSON for anything else. On a terminal a bar shows how far
    the application says that it has come; with --json each such message is a line on standard error. Ctrl-C, like
    SIGTERM and SIGHUP, cancels the command, and the application is told.

    Examples:
      agentbridge call CLIENT addTodo title=Milk
      agentbridge call CLIENT addTodo title=Milk tags:='["home"]' done:=false
      agentbridge call CLIENT todo-list clear_completed
      agentbridge call CLIENT export_report --timeout 5m --json
    """
    action, parameters = parse_rest(rest)
    command = _command(client, target=target, action=action, parameters=parameters, timeout_ms=timeout * 1000, **more)
    click.get_current_context().exit(asyncio.run(_call(settings, client, command, as_json=as_json)))


def parse_rest(rest: Sequence[str]) -> tuple[str | None, msgspec.Raw]:
    """Return the action, where one is named, and the parameters as JSON. Raises `click.UsageError`."""
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
        raise click.UsageError(f"{pair!r} is no parameter: say key=text, or key:=json")
    if key == name:
        return key, msgspec.Raw(codec.encode(value))
    try:
        return key, msgspec.Raw(codec.encode(msgspec.json.decode(value)))
    except (msgspec.DecodeError, RecursionError) as exc:
        raise click.UsageError(f"the value of {key!r} is no JSON: for text say {key}=text") from exc


def _command(client: str, **fields: Any) -> CommandRequest:
    try:
        check_token(client, "CLIENT")
        return check_command(CommandRequest(**fields))
    except InvalidRequest as exc:
        raise click.UsageError(exc.message) from exc


class _Done(Exception):
    """Ends the task group of a call that has its answer; probes would otherwise sleep on for a second."""


async def _call(settings: CommandSettings, client: str, command: CommandRequest, *, as_json: bool) -> int:
    """Print the answer, or the error that took its place, and return the exit code.

    It is printed before NATS is told that nobody waits any more, which takes a second where that is what is away.
    """
    token = token_of(settings)
    address = ClientAddress(tenant_of(token), client)
    async with connected(settings) as connection:
        with display(as_json=as_json) as shown:
            try:
                response = await unless_signalled(_converse(connection, address, command, token, shown.on_progress))
            except Signalled as signalled:
                shown.say(_CANCELLED if await connection.answers(LAST_WORD_SECONDS) else _CANCELLED_UNHEARD)
                return signalled.exit_code
        _print(response, as_json=as_json)
        if response.error is None:
            return 0
        await connection.answers(LAST_WORD_SECONDS)  # the command may have been given up: have its `cancel` arrive
        return EXIT_FAILED


def _print(response: CommandResponse, *, as_json: bool) -> None:
    if as_json:
        click.echo(output.one_line(response))
        return
    try:
        click.echo(output.readable(response.value()))
    except BridgeError as exc:
        click.ClickException(output.sentence(exc)).show()


async def _converse(
    connection: Connection,
    address: ClientAddress,
    command: CommandRequest,
    token: str | None,
    on_progress: OnProgress | None,
) -> CommandResponse:
    """Return the answer, or the error that took its place."""
    response = None
    try:
        async with asyncio.TaskGroup() as tasks:
            caller = Caller(connection, Directory(connection, address.tenant, token).knows)
            await caller.start(tasks)
            response = await _answer(caller, address, command, token, on_progress)
            raise _Done
    except* _Done:
        pass
    assert response is not None
    return response


async def _answer(
    caller: Caller, address: ClientAddress, command: CommandRequest, token: str | None, on_progress: OnProgress | None
) -> CommandResponse:
    request_id = command.request_id or new_request_id()
    try:
        command = msgspec.structs.replace(command, request_id=request_id)
        return await caller.call(address, command, token, on_progress)
    except BridgeError as exc:
        return failure(request_id, exc, address.client_id)
