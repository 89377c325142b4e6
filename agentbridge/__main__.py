"""The `agentbridge` command."""

from typing import Any

import click

from agentbridge.commands.processes import agent_api, gateway, registry
from agentbridge.commands.up import up
from protocol.errors import BridgeError, ConfigurationError
from protocol.runtime.settings import environment

EXIT_INTERRUPTED = 130


class _Commands(click.Group):
    """Commands in the order a newcomer needs them, and one boundary for their errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BridgeError as exc:
            raise click.ClickException(f"{exc.code}: {exc.message}") from exc
        except ConfigurationError as exc:
            raise click.ClickException(str(exc)) from exc
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="agentbridge-nats", prog_name="agentbridge")
@click.pass_context
def cli(ctx: click.Context) -> None:
    r"""Let AI agents use running applications, routed by NATS.

    \b
    Begin with:
      agentbridge up                                everything, on this machine
      agentbridge clients                           which applications are connected
      agentbridge call CLIENT add_todo title=Milk   have one do something
    """
    if environment().get("NO_COLOR"):
        ctx.color = False


for command in (up, gateway, agent_api, registry):
    cli.add_command(command)


def main() -> None:
    """Run the command line."""
    cli(prog_name="agentbridge")


if __name__ == "__main__":
    main()
