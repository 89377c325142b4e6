"""`agentbridge events`: what applications tell and how they come and go, as it happens on NATS."""

import asyncio
import fnmatch
from collections.abc import AsyncIterator
from typing import Any

import click
from nats.aio.msg import Msg

from agentbridge import output
from agentbridge.commands.help import Command
from agentbridge.commands.options import TO_CALL, as_json, needs_settings
from agentbridge.credentials import CommandSettings, connected, tenant_of, token_of
from protocol import codec, subjects
from protocol.errors import ConfigurationError, InvalidRequest
from protocol.ids import is_token
from protocol.runtime.nats import Connection

MAX_WAITING = 1000


@click.command(cls=Command)
@click.option("--client", help="Only this client's.")
@click.option("--event", "names", multiple=True, help="Only events so named; * matches any text. Repeatable.")
@click.option("--changes", is_flag=True, help="Only clients connecting, changing and going.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many.")
@as_json
@needs_settings(*TO_CALL)
def events(settings: CommandSettings, as_json: bool, **choice: Any) -> None:
    """Watch applications, live.

    Shows their events, and how they come and go, until Ctrl-C. This is a live tap of the NATS subjects
    agentbridge.TENANT.event.> and agentbridge.TENANT.client.>; with --json each message is printed as it is, one a
    line.

    Examples:
      agentbridge events
      agentbridge events --event 'todo_*'
      agentbridge events --changes --json
    """
    asyncio.run(_show(settings, as_json, **choice))


async def _show(
    settings: CommandSettings,
    as_json: bool,
    client: str | None,
    names: tuple[str, ...],
    changes: bool,
    count: int | None,
) -> None:
    tenant = tenant_of(token_of(settings))
    tapped = _subjects(tenant, client, events=bool(names) or not changes, changes=changes or not names)
    shown = 0
    async with connected(settings) as connection:
        async for message in _tap(connection, tapped):
            if "event" in message and names and not _named(str(message["event"]), names):
                continue
            click.echo(output.one_line(message) if as_json else describe(message))
            shown += 1
            if shown == count:
                return


def _subjects(tenant: str, client: str | None, *, events: bool, changes: bool) -> list[str]:
    if client is not None and not is_token(client):
        raise click.BadParameter("no client has such an id", param_hint="--client")
    who = client or "*"
    return [subjects.events_of(tenant, who)] * events + [subjects.client_changes_of(tenant, who)] * changes


async def _tap(connection: Connection, tapped: list[str]) -> AsyncIterator[dict[str, Any]]:
    """Yield the messages on these subjects; what a slow terminal has not taken waits in NATS's own buffers."""
    queue: asyncio.Queue[Msg | None] = asyncio.Queue(MAX_WAITING)
    for subject in tapped:
        await connection.subscribe(subject, queue.put)
    await connection.verify_permissions()
    connection.failed.add_done_callback(lambda _: queue.put_nowait(None))
    click.echo(f"listening on {' and '.join(tapped)}; Ctrl-C ends", err=True)
    while True:
        message = await queue.get()
        if message is None:
            raise ConfigurationError("NATS closed the connection for good: see the log of nats-server")
        content = _content(message)
        if content is not None:
            yield content


def _content(message: Msg) -> dict[str, Any] | None:
    """Return what a message says, None where it is not one of ours."""
    try:
        content = codec.decode_value(message.data)
    except InvalidRequest:
        content = None
    if isinstance(content, dict):
        return content
    click.echo(f"ignored a message on {output.printable(message.subject)} that is not ours", err=True)
    return None


def _named(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def describe(message: dict[str, Any]) -> str:
    """Return a message on one line: when, whose, what."""
    at, client = str(message.get("at", ""))[11:23], str(message.get("clientId", ""))
    who = " ".join(str(message[field]) for field in ("app", "user") if message.get(field))
    if "event" in message:
        data = output.one_line(message["data"]) if "data" in message else ""
        what = f"{click.style(output.printable(str(message['event'])), fg='green')}  {output.printable(data)}"
    else:
        reason = f"  {message['reason']}" if message.get("reason") else ""
        what = click.style(output.printable(f"client {message.get('change')}{reason}"), fg="yellow")
    return f"{output.printable(f'{at}  {client}  {who}')}  {what}".rstrip()
