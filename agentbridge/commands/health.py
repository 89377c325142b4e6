"""`agentbridge health`: the state of NATS and of our processes, from their own answers (ADR-32)."""

import asyncio
import contextlib
import datetime
import socket
import time
from collections.abc import AsyncIterator

import click
import msgspec
from nats.aio.client import ServerVersion
from nats.aio.msg import Msg

from agentbridge.cli import output
from agentbridge.cli.credentials import CommandSettings, claims_of, connected, logs_in_by_token, token_of
from agentbridge.cli.login_trial import LoginTrial, try_login
from agentbridge.commands.help import TeachingCommand
from agentbridge.commands.options import TO_CALL, as_json, needs_settings
from protocol.access import ADMIN
from protocol.errors import ConfigurationError, PermissionDenied
from protocol.runtime.nats.agent_login import LOGINS_METADATA
from protocol.runtime.nats.connection import Connection

QUIET_SECONDS = 0.3
PATIENCE_SECONDS = 2.0
STATS_SUBJECT = "$SRV.STATS"
COMMANDS = {
    "agentbridge-gateway": "agentbridge gateway",
    "agentbridge-agent-api": "agentbridge agent-api",
    "agentbridge-registry": "agentbridge registry",
}


class _Endpoint(msgspec.Struct):
    num_requests: int = 0
    num_errors: int = 0
    data: dict[str, int] | None = None


class _Stats(msgspec.Struct):
    """A process's answer to `$SRV.STATS`, reduced to the fields that we show."""

    name: str
    id: str
    version: str
    started: str
    metadata: dict[str, str] = {}
    endpoints: list[_Endpoint] = []
    data: dict[str, int] | None = None
    faults: list[str] = []

    @property
    def clock_skew_ms(self) -> int:
        """How far its clock is ahead, in ms. It stands in the `data` of the process or of one of its endpoints."""
        told = (data.get("clockSkewMs", 0) for data in (self.data, *(each.data for each in self.endpoints)) if data)
        return next(filter(None, told), 0)


class Process(msgspec.Struct, frozen=True, rename="camel"):
    """A process that answered, within `answered_ms`. `faults` has a sentence for each stream that it finds at fault."""

    name: str
    id: str
    host: str
    version: str
    up_seconds: int
    requests: int
    errors: int
    answered_ms: float
    clock_skew_ms: int = 0
    lets_agents_in: bool = False
    faults: list[str] = []


class HealthReport(msgspec.Struct, frozen=True, rename="camel"):
    """The state of the whole deployment. `missing` names the kinds of process of which none answered.

    `agent_login` is None if it was not tried, because no registry lets agents in or there is no token.
    `faults` are the sentences of all processes about streams that refuse messages, without repetition.
    """

    nats_url: str
    nats_version: str
    nats_round_trip_ms: float
    processes: list[Process]
    missing: list[str]
    agent_login: LoginTrial | None
    faults: list[str]


_decoder = msgspec.json.Decoder(_Stats)


@click.command(cls=TeachingCommand)
@as_json
@click.option(
    "--here",
    type=click.Choice([name.removeprefix("agentbridge-") for name in COMMANDS]),
    help="Only check that a process of this kind answers on this host, for a container's health check.",
)
@needs_settings(*TO_CALL)
def health(settings: CommandSettings, as_json: bool, here: str | None) -> None:
    """Show NATS and the processes on it, and try an agent's login.

    Exits with 1 if a kind of process is missing, an agent cannot log in, or a stream of NATS does not take messages.
    REQUESTS and ERRORS count the requests to a process's fixed NATS endpoints. Commands are not counted.

    Examples:
      agentbridge health
      agentbridge health --json
      agentbridge health --here registry
    """
    _require_admin(settings)
    if here is not None:
        asyncio.run(_require_here(settings, f"agentbridge-{here}"))
        return
    found = asyncio.run(_examine(settings))
    if as_json:
        click.echo(output.one_line(found))
    else:
        click.echo(f"NATS {found.nats_version} at {found.nats_url}, round trip {found.nats_round_trip_ms:.1f} ms")
        if found.processes:
            headers = ["PROCESS", "ID", "HOST", "VERSION", "UP", "REQUESTS", "ERRORS", "ANSWERED IN", "CLOCK"]
            click.echo(output.table(headers, map(_row, found.processes)))
        if found.agent_login is not None and found.agent_login.milliseconds is not None:
            click.echo(f"an agent logs in to NATS by its token in {found.agent_login.milliseconds:.1f} ms")
    if problems := _problems(found):
        raise ConfigurationError("; ".join(problems))


def _problems(found: HealthReport) -> list[str]:
    """Return a sentence for each problem, with its mend."""
    problems = list(found.faults)
    if found.missing:
        starts = ", ".join(f"`{COMMANDS[name]}`" for name in found.missing)
        problems.append(f"no process answers as {', '.join(found.missing)}: start {starts}")
    if found.agent_login is not None and found.agent_login.refusal is not None:
        problems.append(f"an agent cannot log in to NATS: {found.agent_login.refusal}")
    return problems


def _require_admin(settings: CommandSettings) -> None:
    """Raise `PermissionDenied` unless the token is an admin's, because NATS lets only admins ask processes."""
    token = token_of(settings)
    if token is not None and logs_in_by_token(settings) and claims_of(token).get("role") != ADMIN:
        raise PermissionDenied("this needs a token with the role admin")


async def _require_here(settings: CommandSettings, name: str) -> None:
    """Raise `ConfigurationError` if no process of this name answers on this host."""
    host = socket.gethostname()
    async with connected(settings) as connection:
        async for process in _answers(connection):
            if (process.name, process.host) == (name, host):
                return
    raise ConfigurationError(f"no {name} answers on {host}: start `{COMMANDS[name]}`")


async def _examine(settings: CommandSettings) -> HealthReport:
    async with connected(settings) as connection:
        round_trip = await _round_trip_ms(connection)
        processes = sorted([process async for process in _answers(connection)], key=lambda p: (p.name, p.id))
        present = {process.name for process in processes}
        lets_in = any(process.lets_agents_in for process in processes)
        return HealthReport(
            nats_url=output.without_password(settings.nats_url),
            nats_version=_version(connection.client.connected_server_version),
            nats_round_trip_ms=round_trip,
            processes=processes,
            missing=[name for name in COMMANDS if name not in present],
            agent_login=await try_login(settings) if lets_in else None,
            faults=sorted({fault for process in processes for fault in process.faults}),
        )


async def _round_trip_ms(connection: Connection) -> float:
    started = time.perf_counter()
    await connection.client.flush()
    return _milliseconds_since(started)


async def _answers(connection: Connection) -> AsyncIterator[Process]:
    """Yield the processes that answer, until none has for 0.3 s, or for 2 s while a kind is missing."""
    # The number of processes is unknown, so only silence can end the wait.
    queue: asyncio.Queue[tuple[Msg, float]] = asyncio.Queue()
    started = time.perf_counter()

    async def accept(message: Msg) -> None:
        queue.put_nowait((message, _milliseconds_since(started)))

    inbox = connection.new_inbox()
    await connection.subscribe(inbox, accept)
    await connection.publish(STATS_SUBJECT, b"", reply=inbox)
    await connection.verify_permissions()
    missing = set(COMMANDS)
    with contextlib.suppress(TimeoutError):
        while True:
            async with asyncio.timeout(PATIENCE_SECONDS if missing else QUIET_SECONDS):
                message, answered_ms = await queue.get()
            process = _process(message, answered_ms)
            if process is not None:
                missing.discard(process.name)
                yield process


def _process(message: Msg, answered_ms: float) -> Process | None:
    """Decode one of our processes. Return None for another service on the same NATS, and for *no responders*."""
    if not message.data:
        return None
    try:
        stats = _decoder.decode(message.data)
        started = datetime.datetime.fromisoformat(stats.started)
    except (msgspec.DecodeError, ValueError):
        return None
    return (
        Process(
            name=stats.name,
            id=stats.metadata.get("gatewayId", stats.id),
            host=stats.metadata.get("host", ""),
            version=stats.version,
            up_seconds=round((datetime.datetime.now(datetime.UTC) - started).total_seconds()),
            requests=sum(endpoint.num_requests for endpoint in stats.endpoints),
            errors=sum(endpoint.num_errors for endpoint in stats.endpoints),
            answered_ms=round(answered_ms, 1),
            clock_skew_ms=stats.clock_skew_ms,
            lets_agents_in=stats.metadata.get(LOGINS_METADATA) == "on",
            faults=stats.faults,
        )
        if stats.name in COMMANDS
        else None
    )


def _version(version: ServerVersion) -> str:
    return f"{version.major}.{version.minor}.{version.patch}"


def _row(process: Process) -> list[str]:
    up = str(datetime.timedelta(seconds=process.up_seconds))
    counts = [str(process.requests), str(process.errors)]
    return [
        process.name,
        process.id,
        process.host,
        process.version,
        up,
        *counts,
        f"{process.answered_ms:.1f} ms",
        f"{process.clock_skew_ms / 1000:+.1f} s",
    ]


def _milliseconds_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
