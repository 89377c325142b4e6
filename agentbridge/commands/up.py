"""`agentbridge up`: the whole bridge on this machine, by one command."""

import asyncio
import logging
import sys
from pathlib import Path

import click

from agentbridge.commands.help import TeachingCommand
from agentbridge.deployment import data_folder
from agentbridge.deployment.data_folder import RunFile
from agentbridge.up import nats_server, ports, welcome
from agentbridge.up.settings import UpSettings, complete
from agentbridge.up.supervisor import Announce, Supervisor
from protocol.errors import ConfigurationError
from protocol.runtime import logs, settings, variables

log = logging.getLogger(__name__)


@click.command(cls=TeachingCommand)
def up() -> None:
    """Run everything on this machine.

    Starts NATS, a registry, a gateway and an agent API. NATS listens on loopback, with JetStream in the data folder. If
    AGENTBRIDGE_NATS_URL is set, an existing server is used instead. URLs and tokens are printed when all are ready.
    Other commands find them in the data folder. A process that dies is restarted. Ctrl-C stops everything.

    Environment:
      AGENTBRIDGE_DATA_DIR        folder for its data (./.agentbridge)
      AGENTBRIDGE_NATS_URL        a NATS server that runs already
      AGENTBRIDGE_API_PORT        port of the agent API (8000; 0 takes any)
      AGENTBRIDGE_GATEWAY_PORT    port for applications (8001; 0 takes any)
      AGENTBRIDGE_NATS_PORT       port of its NATS (4222, or any if that is taken)
      AGENTBRIDGE_JWT_SECRET      secret for tokens, 32 bytes or more (random)
      AGENTBRIDGE_ALLOWED_ORIGINS web origins that may connect (this machine's)
    Every other setting of the processes is passed on to them.

    Examples:
      agentbridge up
      AGENTBRIDGE_API_PORT=0 AGENTBRIDGE_GATEWAY_PORT=0 agentbridge up
    """
    environment = complete(settings.environment())
    configured = settings.load(UpSettings, environment)
    logs.configure("up", configured.log_format, configured.log_level)
    for sentence in variables.unknown(environment):
        log.warning("%s", sentence)
    environment = variables.without_unknown(environment)
    binary = None if settings.variable("nats_url") in environment else nats_server.find()
    with data_folder.hold(Path(configured.data_dir)):
        ports.require_free(configured)
        failure = asyncio.run(Supervisor(configured, environment, binary).run(_announcer(configured.data_dir)))
    if failure is not None:
        raise ConfigurationError(f"{failure}; see its log above")


def _announcer(folder: str) -> Announce:
    def announce(found: RunFile) -> None:
        click.echo(welcome.text(found, folder, _program(), terminal=sys.stdout.isatty()))

    return announce


def _program() -> str:
    """Return how the user calls us."""
    return f"{sys.executable} -m agentbridge" if sys.argv[0].endswith("__main__.py") else sys.argv[0]
