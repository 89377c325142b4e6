"""`agentbridge disconnect`: an administrator ends all connections of an agent."""

import asyncio

import click

from agentbridge.cli import output
from agentbridge.cli.credentials import CommandSettings, connected, tenant_of, token_of
from agentbridge.cli.registry_client import RegistryClient
from agentbridge.commands.help import TeachingCommand
from agentbridge.commands.options import TO_CALL, as_json, duration, needs_settings
from protocol.reports import DENIAL_SECONDS, MAX_DENIAL_SECONDS, DisconnectAgentRequest, DisconnectAgentResponse


@click.command(cls=TeachingCommand)
@click.argument("agent")
@click.option(
    "--for",
    "seconds",
    default=f"{DENIAL_SECONDS}s",
    show_default=True,
    metavar="DURATION",
    help="How long its tokens are refused; 0 lets it back in at once.",
)
@as_json
@needs_settings(*TO_CALL)
def disconnect(settings: CommandSettings, as_json: bool, agent: str, seconds: str) -> None:
    """End all connections of an agent, and refuse it for a while.

    AGENT is the `sub` of its tokens. Its WebSockets, streams and NATS connections end, in all processes and on all
    servers, and its tokens are refused everywhere for the time given by --for. With --for 0 it may come back at once,
    even if it is refused now. The token must be an administrator's, of the agent's tenant.

    Examples:
      agentbridge disconnect planner
      agentbridge disconnect planner --for 12h
      agentbridge disconnect planner --for 0
    """
    asked = DisconnectAgentRequest(agent, _seconds(seconds))
    ended = asyncio.run(_disconnect(settings, asked))
    if as_json:
        click.echo(output.one_line(ended))
        return
    until = "may come back at once" if asked.seconds == 0 else f"is kept out until {ended.denied_until}"
    click.echo(f"{output.printable(agent)} {until}; connections to NATS ended: {ended.nats_connections}")


def _seconds(text: str) -> int:
    seconds = 0 if text == "0" else duration(text, "--for")
    if seconds > MAX_DENIAL_SECONDS:
        raise click.BadParameter("at most 24h: for longer, let your issuer give it no tokens", param_hint="--for")
    return seconds


async def _disconnect(settings: CommandSettings, asked: DisconnectAgentRequest) -> DisconnectAgentResponse:
    token = token_of(settings)
    async with connected(settings) as connection:
        return await RegistryClient(connection, tenant_of(token), token).disconnect(asked)
