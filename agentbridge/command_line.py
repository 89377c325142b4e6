"""The commands of `agentbridge`, and how errors and signals end them."""

import contextlib
import os
import sys
from typing import Any

import click

from agentbridge import PROCESSES
from agentbridge.cli import output
from agentbridge.commands.audit import audit
from agentbridge.commands.call import call
from agentbridge.commands.disconnect import disconnect
from agentbridge.commands.events import events
from agentbridge.commands.health import health
from agentbridge.commands.help import keep_lists
from agentbridge.commands.listing import capabilities, clients
from agentbridge.commands.mcp import mcp
from agentbridge.commands.processes import agent_api, gateway, registry
from agentbridge.commands.token import token
from agentbridge.commands.up import up
from protocol.errors import BridgeError, ConfigurationError
from protocol.runtime import variables
from protocol.runtime.process.early_signals import EXIT_INTERRUPTED
from protocol.runtime.settings import environment


class _CommandGroup(click.Group):
    """The commands, in the order in which a newcomer needs them. Errors become one sentence and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BridgeError as exc:
            raise click.ClickException(output.sentence(exc)) from exc
        except ConfigurationError as exc:
            raise click.ClickException(str(exc)) from exc
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
HELP = """Let AI agents use running applications, routed by NATS.

Begin with:
  agentbridge up                                run everything on this machine
  agentbridge clients                           list the connected applications
  agentbridge call CLIENT addTodo title=Milk    call a function of one

Commands take their credentials from flags, else from the environment, else from
a running `agentbridge up`.
"""


@click.group(cls=_CommandGroup, help=keep_lists(HELP), context_settings=SETTINGS)
@click.version_option(package_name="agentbridge-nats", prog_name="agentbridge")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Make the context that all commands share, and warn of `AGENTBRIDGE_…` variables that are not settings."""
    if environment().get("NO_COLOR"):
        ctx.color = False
    if ctx.invoked_subcommand not in PROCESSES:  # these warn in their logs
        with contextlib.suppress(OSError):  # nobody reads standard error
            for sentence in variables.unknown(environment()):
                click.echo(f"warning: {sentence}", err=True)


for command in (
    *(up, gateway, agent_api, registry),
    *(token, clients, capabilities, call, events, audit, disconnect, mcp, health),
):
    cli.add_command(command)


def main() -> None:
    """Run the command line."""
    try:
        cli(prog_name="agentbridge")
    finally:
        _drop_what_nobody_reads()


def _drop_what_nobody_reads() -> None:
    """Discard unwritten text if standard error is closed. The interpreter would try again and exit with 120."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
