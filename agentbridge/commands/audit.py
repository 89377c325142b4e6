"""`agentbridge audit`: who called what and how that ended, from the audit stream and as it happens."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Any

import click

from agentbridge import output
from agentbridge.commands.help import Command
from agentbridge.commands.options import TO_CALL, as_json, duration, needs_settings
from agentbridge.credentials import CommandSettings, connected, tenant_of, token_of
from agentbridge.taps import Tap
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
        history, tap = AuditHistory(connection), Tap(connection)
        await history.start()
        await connection.verify_permissions()
        begun = await _last_sequence(history, connection) if follow else 0
        if follow:  # before the past is read, so that nothing falls between
            await tap.listen([wanted.subject(tenant)])
        past = await _past(history, connection, tenant, wanted, limit)
        for found in past:
            _print(codec.decode_value(found.data), found.record, as_json=as_json)
        if follow:
            twice = Twice(found.data for found in past if found.sequence > begun)
            async for content, record in _live(tap, wanted, twice):
                _print(content, record, as_json=as_json)
        elif not past and not as_json:
            click.echo("nothing is recorded", err=True)


class Twice:
    """What was read of the past though it came while we were listening, and so comes again: once each."""

    def __init__(self, stored: Iterable[bytes]) -> None:
        self._coming = Counter(codec.encode(codec.decode_value(data)) for data in stored)

    def take(self, content: dict[str, Any]) -> bool:
        """Return whether what comes was shown already."""
        data = codec.encode(content)
        if not self._coming[data]:
            return False
        self._coming[data] -= 1
        return True


async def _last_sequence(history: AuditHistory, connection: Connection) -> int:
    async with _permitted(connection):
        return (await history.info()).state.last_seq


async def _past(
    history: AuditHistory, connection: Connection, tenant: str, wanted: AuditFilter, limit: int
) -> list[Found]:
    """Return the newest records, the last one last."""
    found: list[Found] = []
    before, more = None, True
    while more and len(found) < limit:
        async with _permitted(connection):
            page = await history.page(tenant, wanted, min(PAGE, limit - len(found)), before)
        found += page.found
        before, more = page.reached, page.more
    return found[::-1]


@contextlib.asynccontextmanager
async def _permitted(connection: Connection) -> AsyncIterator[None]:
    """Have what is not permitted, which looks like silence, be told as such."""
    try:
        yield
    except Unavailable:
        await connection.verify_permissions()
        raise


async def _live(tap: Tap, wanted: AuditFilter, twice: Twice) -> AsyncIterator[tuple[dict[str, Any], AuditRecord]]:
    """Yield what comes, but for what has been shown already."""
    async for content in tap.messages():
        record = read_record(codec.encode(content))
        if record is not None and wanted.wants(record) and not twice.take(content):
            yield content, record


def _filter(
    client: str | None, agent: str | None, target: str | None, outcome: str | None, since: str | None
) -> AuditFilter:
    if client is not None and client != NO_CLIENT:
        try:
            check_token(client, "--client")
        except InvalidRequest as exc:
            raise click.BadParameter("no client has such an id", param_hint="--client") from exc
    begin = None if since is None else timestamp(time.time() - duration(since))
    return AuditFilter(client_id=client, agent=agent, target=target, outcome=outcome, since=begin)


def _print(content: Any, record: AuditRecord, *, as_json: bool) -> None:
    click.echo(output.one_line(content) if as_json else describe(record))


def describe(record: AuditRecord) -> str:
    """Return a record on one line: when, who, whom, what, and how it ended."""
    what = output.printable(" ".join(filter(None, (record.target or "?", record.action))))
    whom = output.printable(" ".join(filter(None, (record.client_id or "-", record.app, record.user))))
    ended = record.outcome + (f" {output.printable(record.code)}" if record.code else "")
    colour = "green" if record.outcome == SUCCESS else "red"
    who = output.printable(record.agent or "?")
    took = f"{record.duration_ms} ms" + (", replayed" if record.replayed else "")
    return f"{record.at[:19].replace('T', ' ')}  {who} -> {whom}  {what}  {click.style(ended, fg=colour)}  {took}"
