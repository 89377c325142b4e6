"""`agentbridge audit`: who called what and how that ended, from the audit stream and as it happens."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import click

from agentbridge import output
from agentbridge.commands.help import Command
from agentbridge.commands.options import TO_CALL, as_json, duration, needs_settings
from agentbridge.credentials import CommandSettings, connected, tenant_of, token_of
from agentbridge.following import Follower, Place
from protocol import codec
from protocol.audit import SUCCESS, AuditFilter, AuditRecord, read_record
from protocol.errors import Code, InvalidRequest, Unavailable
from protocol.ids import check_token
from protocol.messages import timestamp
from protocol.runtime.audit_history import AuditHistory, Found
from protocol.runtime.nats import Connection
from protocol.subjects import NO_CLIENT

MAX_LIMIT = 100_000
PAGE = 1000
GAP = "some records may have been missed"
OUTCOMES = (SUCCESS, *(code.value for code in Code))


@click.command(cls=Command)
@click.option("--client", help=f"Only commands for this client; {NO_CLIENT}: for no known one.")
@click.option("--agent", help="Only this caller's: the `sub` of its token.")
@click.option("--target", help="Only commands with this target.")
@click.option("--outcome", type=click.Choice(OUTCOMES), help="Only commands that ended so.", metavar="OUTCOME")
@click.option("--since", metavar="DURATION", help="Only the last 15m, 12h or 7d.")
@click.option("--limit", type=click.IntRange(1, MAX_LIMIT), default=20, show_default=True, help="At most so many.")
@click.option("--follow", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@as_json
@needs_settings(*TO_CALL)
def audit(settings: CommandSettings, as_json: bool, limit: int, follow: bool, **choice: Any) -> None:
    """Show who called what, and how that ended.

    The newest records of the token's tenant, the last one last. Its NATS user must be permitted to read the audit
    stream, which those of a deployment's command line and of `agentbridge up` are.

    Examples:
      agentbridge audit
      agentbridge audit --follow --outcome permission_denied
      agentbridge audit --since 7d --limit 100000 --json | jq .target
    """
    asyncio.run(_show(settings, _filter(**choice), limit, as_json=as_json, follow=follow))


async def _show(settings: CommandSettings, wanted: AuditFilter, limit: int, *, as_json: bool, follow: bool) -> None:
    tenant = tenant_of(token_of(settings))
    async with connected(settings) as connection:
        history = AuditHistory(connection)
        await history.start()
        await connection.verify_permissions()
        view = _View(connection, history, tenant, wanted, as_json=as_json)
        if follow:
            await view.follow(limit)
        elif not await view.past(limit) and not as_json:
            click.echo("nothing is recorded", err=True)


class _View:
    """The wanted records of a tenant, as they are printed."""

    def __init__(
        self, connection: Connection, history: AuditHistory, tenant: str, wanted: AuditFilter, *, as_json: bool
    ) -> None:
        self._connection = connection
        self._history = history
        self._tenant = tenant
        self._wanted = wanted
        self._as_json = as_json

    async def past(self, limit: int, before: int | None = None) -> bool:
        """Show the newest, of those below the sequence `before` where it is given; return whether there are any."""
        past = await self._newest(limit, before)
        for found in past:
            self._print(found.data, found.record)
        return bool(past)

    async def follow(self, limit: int) -> None:
        """Show the past up to the present end of the stream, and from there on what comes."""
        subject = self._wanted.subject(self._tenant)
        follower = Follower(self._connection, self._history, subject)
        await follower.start()
        async with _permitted(self._connection):
            begun = await self._history.info()
        click.echo(f"listening on {subject}; Ctrl-C ends", err=True)
        await self.past(limit, begun.state.last_seq + 1)
        async for stretch in follower.stretches(Place(begun)):
            if stretch.missed:
                self._tell_of_gap()
            for message in stretch.found:
                record = read_record(message.data)
                if record is not None and self._wanted.wants(record):
                    self._print(message.data, record)

    async def _newest(self, limit: int, before: int | None) -> list[Found]:
        """Return the newest records, the last one last."""
        found: list[Found] = []
        more = True
        while more and len(found) < limit:
            async with _permitted(self._connection):
                page = await self._history.page(self._tenant, self._wanted, min(PAGE, limit - len(found)), before)
            found += page.found
            before, more = page.reached, page.more
        return found[::-1]

    def _print(self, data: bytes, record: AuditRecord) -> None:
        click.echo(output.one_line(codec.decode_value(data)) if self._as_json else describe(record))

    def _tell_of_gap(self) -> None:
        """Say that records may be missing here, also to a program that reads standard output alone."""
        click.echo(f"{GAP}: the audit stream does not hold all that followed the last one", err=True)
        if self._as_json:
            click.echo(output.one_line({"gap": {"message": GAP}}))


@contextlib.asynccontextmanager
async def _permitted(connection: Connection) -> AsyncIterator[None]:
    """Have what is not permitted, which looks like silence, be told as such."""
    try:
        yield
    except Unavailable:
        await connection.verify_permissions()
        raise


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
    """Return a record on one line: when, who, whom, what, and how it ended."""
    what = output.printable(" ".join(filter(None, (record.target or "?", record.action))))
    whom = output.printable(" ".join(filter(None, (record.client_id or "-", record.app, record.user))))
    ended = record.outcome + (f" {output.printable(record.code)}" if record.code else "")
    colour = "green" if record.outcome == SUCCESS else "red"
    who = output.printable(record.agent or "?")
    took = f"{record.duration_ms} ms" + (", replayed" if record.replayed else "")
    return f"{record.at[:19].replace('T', ' ')}  {who} -> {whom}  {what}  {click.style(ended, fg=colour)}  {took}"
