"""Finds occupied ports before anything starts, so that one sentence can name the setting to change."""

import contextlib
import errno
import socket

from agentbridge.up.settings import UpSettings
from protocol.errors import ConfigurationError
from protocol.runtime.settings import variable

LOOPBACK = "127.0.0.1"


def require_free(settings: UpSettings) -> None:
    """Raise `ConfigurationError`, with the variable to set, if the gateway, the API or NATS cannot listen.

    The port of NATS is tried only if one is set, because NATS otherwise takes any free one.
    """
    wanted = [
        (kind, getattr(settings, f"{kind}_host"), getattr(settings, f"{kind}_port")) for kind in ("api", "gateway")
    ]
    wanted += [("nats", LOOPBACK, settings.nats_port)] if settings.nats_port is not None else []
    with contextlib.ExitStack() as held:
        for kind, host, port in wanted:
            try:
                _hold(held, host, port)
            except OSError as exc:
                raise ConfigurationError(f"cannot listen on {host} port {port}: {_remedy(exc, kind)}") from exc


def _remedy(error: OSError, kind: str) -> str:
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        return f"{error.strerror}; set {variable(f'{kind}_port')} to a free port, or to 0 for any"
    return f"{error.strerror}; set {variable(f'{kind}_host')} to an address of this machine"


def _hold(held: contextlib.ExitStack, host: str, port: int) -> None:
    """Listen on a port, and keep it until all are tried, so that two processes with one port are noticed."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    probe = held.enter_context(socket.socket(family, kind))
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(address)
    probe.listen()
