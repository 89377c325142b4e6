"""`agentbridge gateway`, `agent-api` and `registry`: one process of a deployment, in the foreground."""

import os
import sys

import click

from agentbridge.commands.help import TeachingCommand
from protocol.runtime.process import early_signals
from protocol.runtime.settings import PREFIX


def _help(what: str, command: str, example: str) -> str:
    """Return the help of a process. It does not list the settings, because this package does not know them."""
    return (
        f"{what}\n\n"
        f"Its settings are environment variables that begin with {PREFIX}; the README lists them. If one is wrong or "
        "missing, the process ends with a line that says what it should be.\n\n"
        f"Examples:\n  agentbridge {command}\n  {PREFIX}{example} agentbridge {command}"
    )


@click.command(cls=TeachingCommand, help=_help("Run a gateway, for applications.", "gateway", "GATEWAY_PORT=8101"))
def gateway() -> None:
    """Run a gateway."""
    _become("gateway")


@click.command(
    "agent-api",
    cls=TeachingCommand,
    help=_help("Run an agent API, for agents over HTTP.", "agent-api", "API_PORT=8100"),
)
def agent_api() -> None:
    """Run an agent API."""
    _become("agent_api")


@click.command(
    cls=TeachingCommand, help=_help("Run a registry, which lists the applications.", "registry", "REPLICAS=3")
)
def registry() -> None:
    """Run a registry."""
    _become("registry")


def _become(module: str) -> None:
    """Replace this process by the other one, so that signals and exit codes are those of the other.

    `-P` keeps Python from importing a `registry.py` in the user's folder instead of ours.
    """
    early_signals.hold_back()  # Python's start has no handlers yet
    os.execv(sys.executable, [sys.executable, "-P", "-m", module])  # noqa: S606  our own module, no input of anybody's
