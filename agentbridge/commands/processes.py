"""`agentbridge gateway`, `agent-api` and `registry`: one process of a deployment, in the foreground."""

import os
import sys

import click

from agentbridge.commands.help import Command


@click.command(cls=Command)
def gateway() -> None:
    """Run a gateway, for applications.

    Environment:
      AGENTBRIDGE_NATS_URL        where NATS is (nats://127.0.0.1:4222)
      AGENTBRIDGE_NATS_USER, AGENTBRIDGE_NATS_PASSWORD
      AGENTBRIDGE_JWT_SECRET, or AGENTBRIDGE_JWT_PUBLIC_KEY_FILE, or AGENTBRIDGE_JWT_JWKS_URL
      AGENTBRIDGE_GATEWAY_HOST    address to listen on (127.0.0.1)
      AGENTBRIDGE_GATEWAY_PORT    port to listen on (8001; 0 takes any)
      AGENTBRIDGE_ALLOWED_ORIGINS web origins that may connect (none)
    """
    _become("gateway")


@click.command("agent-api", cls=Command)
def agent_api() -> None:
    """Run an agent API, for agents over HTTP.

    Environment:
      AGENTBRIDGE_NATS_URL        where NATS is (nats://127.0.0.1:4222)
      AGENTBRIDGE_NATS_USER, AGENTBRIDGE_NATS_PASSWORD
      AGENTBRIDGE_JWT_SECRET, or AGENTBRIDGE_JWT_PUBLIC_KEY_FILE, or AGENTBRIDGE_JWT_JWKS_URL
      AGENTBRIDGE_API_HOST        address to listen on (127.0.0.1)
      AGENTBRIDGE_API_PORT        port to listen on (8000; 0 takes any)
      AGENTBRIDGE_ALLOWED_ORIGINS web origins that may call (none)
    """
    _become("agent_api")


@click.command(cls=Command)
def registry() -> None:
    """Run a registry, which lists the applications.

    Environment:
      AGENTBRIDGE_NATS_URL        where NATS is (nats://127.0.0.1:4222)
      AGENTBRIDGE_NATS_USER, AGENTBRIDGE_NATS_PASSWORD
      AGENTBRIDGE_JWT_SECRET, or AGENTBRIDGE_JWT_PUBLIC_KEY_FILE, or AGENTBRIDGE_JWT_JWKS_URL
      AGENTBRIDGE_REPLICAS        servers that keep each stream (1)
    """
    _become("registry")


def _become(module: str) -> None:
    """Replace this process by the other, so that signals and exit codes are its own.

    `-P` keeps a `registry.py` in the user's folder from being taken for ours.
    """
    os.execv(sys.executable, [sys.executable, "-P", "-m", module])  # noqa: S606  our own module, no input of anybody's
