"""`agentbridge mcp`: an MCP server for desktop hosts."""

import asyncio
import shutil
import sys
from pathlib import Path

import click

from agentbridge.cli.credentials import CommandSettings, token_of
from agentbridge.cli.host_config import HOSTS
from agentbridge.commands.help import TeachingCommand
from agentbridge.commands.options import needs_settings
from agentbridge.deployment import data_folder
from protocol.errors import ConfigurationError
from protocol.runtime.settings import variable

PATH = "/mcp"
NOT_INSTALLED = "this needs the extra `mcp`: pip install 'agentbridge-nats[mcp]'"


@click.command(cls=TeachingCommand)
@click.option("--url", help="Agent API, http://host:port.  [default: that of a running `agentbridge up`]")
@click.option("--name", default="agentbridge", show_default=True, help="The host's name for this server.")
@click.option(
    "--print-config", "host", type=click.Choice(list(HOSTS)), help="Print the configuration for a host, and exit."
)
@needs_settings("token", "data_dir")
def mcp(settings: CommandSettings, url: str | None, name: str, host: str | None) -> None:
    """Serve a desktop host of the Model Context Protocol.

    The host starts this command and talks to it on standard input and output. Each tool is a capability of a connected
    application. If you have servers for several tokens, give them different names, because hosts keep tools by name.

    Examples:
      agentbridge mcp --print-config claude
      agentbridge mcp --print-config codex --name agentbridge-ann
      AGENTBRIDGE_TOKEN=... agentbridge mcp --url https://agents.example.com
    """
    if host is not None:
        click.echo(HOSTS[host](name, _own_command(settings, url)))
        return
    try:
        from agentbridge.cli.mcp_bridge import sentence_of, serve
    except ImportError as exc:
        raise ConfigurationError(NOT_INSTALLED) from exc
    place = _place(settings, url)
    try:
        asyncio.run(serve(place, lambda: token_of(settings)))
    except* Exception as group:
        raise ConfigurationError(f"{place} cannot be used: {sentence_of(group)}") from group


def _place(settings: CommandSettings, url: str | None) -> str:
    """Return the URL of `/mcp`. Raises `ConfigurationError` if neither `url` nor a running `up` gives it."""
    running = data_folder.read(Path(settings.data_dir))
    if url is None and running is None:
        raise ConfigurationError(
            f"no `agentbridge up` runs in {settings.data_dir}: name an agent API by --url, or the folder by --data-dir "
            f"or {variable('data_dir')}"
        )
    base = url if url is not None else running.api_url if running is not None else ""
    return base.rstrip("/") + PATH


def _own_command(settings: CommandSettings, url: str | None) -> list[str]:
    """Return the command line for a host, with absolute paths because the host runs in another folder."""
    program = shutil.which(sys.argv[0]) or shutil.which("agentbridge") or "agentbridge"
    where = ["--data-dir", str(Path(settings.data_dir).resolve())] if url is None else ["--url", url]
    return [str(Path(program).absolute()), "mcp", *where]
