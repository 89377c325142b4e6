"""`agentbridge audit`: commands, their callers and their outcomes, from the audit stream and live."""

import asyncio
import time
from typing import Any

import click

from agentbridge.cli import output
from agentbridge.cli.audit_follower import AuditFollower, FollowerPlace
from agentbridge.cli.audit_pages import AuditPages, FoundRecord
from agentbridge.cli.credentials import CommandSettings, connected, tenant_of, token_of
from agentbridge.cli.registry_client import RegistryClient
from agentbridge.commands.help import TeachingCommand
from agentbridge.commands.options import TO_CALL, as_json, duration, needs_settings
from protocol import codec
from protocol.audit import SUCCESS, AuditFilter, AuditRecord, read_record
from protocol.errors import Code, InvalidRequest
from protocol.ids import check_token
from protocol.messages import timestamp
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams.jetstream import StreamInfo
from protocol.runtime.streams.positions import Position, epoch_of, parse_position
from protocol.subjects import NO_CLIENT

MAX_LIMIT = 100_000
PAGE = 500
GAP = "some records may have been missed"
OUTCOMES = (SUCCESS, *(code.value for code in Code))


@click.command(cls=TeachingCommand)
@click.option("--client", help=f"Only commands for this client; {NO_CLIENT} for those without a known client.")
@click.option("--agent", help="Only commands of this caller, the `sub` of its token.")
@click.option("--target", help="Only commands with this target.")
@click.option("--outcome", type=click.Choice(OUTCOMES), help="Only commands with this outcome.", metavar="OUTCOME")
@click.option("--since", metavar="DURATION", help="Only the last 15m, 12h or 7d.")
@click.option(
    "--limit", type=click.IntRange(1, MAX_LIMIT), default=20, show_default=True, help="The most records to show."
)
@click.option("--follow", is_flag=True, help="Also show new records as they come, until Ctrl-C.")
@as_json
@needs_settings(*TO_CALL)
def audit(settings: CommandSettings, as_json: bool, limit: int, follow: bool, **choice: Any) -> None:
    """Show commands, their callers and their outcomes.

    Shows the newest records of the token's tenant, newest last. The token must be an administrator's.

    Examples:
      agentbridge audit
      agentbridge audit --follow --outcome permission_denied
      agentbridge audit --since 7d --limit 100000 --json | jq .target
    """
    asyncio.run(_show(settings, _filter(**choice), limit, as_json=as_json, follow=follow))


async def _show(settings: CommandSettings, wanted: AuditFilter, limit: int, *, as_json: bool, follow: bool) -> None:
    token = token_of(settings)
    tenant = tenant_of(token)
    async with connected(settings) as connection:
        pages = AuditPages(RegistryClient(connection, tenant, token), wanted)
        view = _AuditView(connection, pages, tenant, wanted, as_json=as_json)
        if follow:
            await view.follow(limit)
        elif not await view.past(limit) and not as_json:
            click.echo("nothing is recorded", err=True)


class _AuditView:
    """Prints the wanted records of a tenant."""

    def __init__(
        self, connection: Connection, pages: AuditPages, tenant: str, wanted: AuditFilter, *, as_json: bool
    ) -> None:
        self._connection = connection
        self._pages = pages
        self._tenant = tenant
        self._wanted = wanted
        self._as_json = as_json

    async def past(self, limit: int, before: Position | None = None) -> bool:
        """Show the newest records, older than `before` if that is given. Return whether there are any."""
        past = await self._newest(limit, before)
        for found in past:
            self._print(found.data, found.record)
        return bool(past)

    async def follow(self, limit: int) -> None:
        """Show the newest records up to the present end of the stream, then all that are stored behind it."""
        subject = self._wanted.subject(self._tenant)
        follower = AuditFollower(self._connection, self._pages, subject)
        await follower.start()
        begun = await self._pages.info()
        click.echo(f"listening on {subject}; Ctrl-C ends", err=True)
        await self.past(limit, _end_of(begun))
        async for stretch in follower.stretches(FollowerPlace(begun)):
            if stretch.missed:
                self._tell_of_gap()
            for message in stretch.found:
                record = read_record(message.data)
                if record is not None and self._wanted.wants(record):
                    self._print(message.data, record)

    async def _newest(self, limit: int, before: Position | None) -> list[FoundRecord]:
        """Return the newest records, oldest first."""
        found: list[FoundRecord] = []
        more = True
        while more and len(found) < limit:
            records, page = await self._pages.newest(min(PAGE, limit - len(found)), before)
            found += records
            before, more = parse_position(page.reached), page.more
        return found[::-1]

    def _print(self, data: bytes, record: AuditRecord) -> None:
        click.echo(output.one_line(codec.decode_value(data)) if self._as_json else describe(record))

    def _tell_of_gap(self) -> None:
        """Report a gap on standard error, and with `--json` on standard output, too, for programs."""
        click.echo(f"{GAP}: the audit stream has lost records behind the last one", err=True)
        if self._as_json:
            click.echo(output.one_line({"gap": {"message": GAP}}))


def _end_of(info: StreamInfo) -> Position | None:
    """Return the position behind the last message of a stream, or None if there is no stream."""
    return Position(epoch_of(info.created), info.state.last_seq + 1) if info.created else None


def _filter(
    client: str | None, agent: str | None, target: str | None, outcome: str | None, since: str | None
) -> AuditFilter:
    if client is not None and client != NO_CLIENT:
        try:
            check_token(client, "--client")
        except InvalidRequest as exc:
            raise click.BadParameter("no client has such an id", param_hint="--client") from exc
    begin = None if since is None else timestamp(time.time() - duration(since, "--since"))
    return AuditFilter(client_id=client, agent=agent, target=target, outcome=outcome, since=begin)


def describe(record: AuditRecord) -> str:
    """Return a record on one line: time, agent, client, target, outcome, duration."""
    did = (record.target or "?", record.action) if record.disconnected is None else ("disconnects", record.disconnected)
    what = output.printable(" ".join(filter(None, did)))
    whom = output.printable(" ".join(filter(None, (record.client_id or "-", record.app, record.user))))
    ended = record.outcome + (f" {output.printable(record.code)}" if record.code else "")
    colour = "green" if record.outcome == SUCCESS else "red"
    who = output.printable(record.agent or "?")
    how = (", replayed" if record.replayed else "") + (", confirmed" if record.confirmed else "")
    took = f"{record.duration_ms} ms{how}" + (f", {record.count} times" if record.count > 1 else "")
    return f"{record.at[:19].replace('T', ' ')}  {who} -> {whom}  {what}  {click.style(ended, fg=colour)}  {took}"
