"""`agentbridge events`: events of applications and changes of clients, live from NATS."""

import asyncio
import fnmatch
from typing import Any

import click

from agentbridge.cli import output
from agentbridge.cli.credentials import CommandSettings, connected, tenant_of, token_of
from agentbridge.cli.live_tap import LiveTap
from agentbridge.commands.help import TeachingCommand
from agentbridge.commands.options import TO_CALL, as_json, needs_settings
from protocol import subjects
from protocol.ids import is_token


@click.command(cls=TeachingCommand)
@click.option("--client", help="Only events and changes of this client.")
@click.option("--event", "names", multiple=True, help="Only events with this name; * matches any text. Repeatable.")
@click.option("--changes", is_flag=True, help="Only changes of clients: connected, changed, gone.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after this many messages.")
@as_json
@needs_settings(*TO_CALL)
def events(settings: CommandSettings, as_json: bool, **choice: Any) -> None:
    """Watch applications live.

    Shows their events, and clients that connect, change and go, until Ctrl-C. It subscribes to the NATS subjects
    agentbridge.TENANT.event.> and agentbridge.TENANT.client.>. With --json each message is printed unchanged on one
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
        tap = LiveTap(connection)
        await tap.listen(tapped)
        async for message in tap.messages():
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


def _named(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def describe(message: dict[str, Any]) -> str:
    """Return a message on one line: time, client, content."""
    at, client = str(message.get("at", ""))[11:23], str(message.get("clientId", ""))
    who = " ".join(str(message[field]) for field in ("app", "user") if message.get(field))
    if "event" in message:
        data = output.one_line(message["data"]) if "data" in message else ""
        what = f"{click.style(output.printable(str(message['event'])), fg='green')}  {output.printable(data)}"
    else:
        reason = f"  {message['reason']}" if message.get("reason") else ""
        what = click.style(output.printable(f"client {message.get('change')}{reason}"), fg="yellow")
    return f"{output.printable(f'{at}  {client}  {who}')}  {what}".rstrip()
