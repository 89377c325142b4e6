"""Which NATS servers a process agrees to work with: new enough, and with users unless they are on this machine.

Whoever can connect to NATS hears tokens and can answer commands, so a server that lets everybody in is for loopback.
"""

import ipaddress
from typing import Any

from nats.aio.client import Client

from protocol.errors import ConfigurationError
from protocol.runtime.settings import PREFIX, Settings

MIN_VERSION = (2, 11)


def require_acceptable(client: Client, settings: Settings) -> None:
    """Raise `ConfigurationError` where the connected server is none to work with; it says what to do."""
    require_version(client)
    peer = _peer(client)
    if peer is None or is_loopback(peer):
        return
    if settings.auth == "off":
        raise ConfigurationError(
            f"{PREFIX}AUTH=off is for loopback only, but NATS at {shown(settings)} is not on this machine: use one "
            "that is, or give a key to verify tokens with"
        )
    if not _knows_its_users(client):
        raise ConfigurationError(
            f"NATS at {shown(settings)} lets everybody in and is not on this machine: give it users, as "
            "deploy/nats.conf does, or use one on loopback"
        )


def require_version(client: Client) -> None:
    """Raise `ConfigurationError` where the connected server is older than 2.11."""
    version = client.connected_server_version
    if (version.major, version.minor) < MIN_VERSION:
        raise ConfigurationError(f"nats-server is {version.major}.{version.minor}, but 2.11 or newer is needed")


def is_loopback(address: str) -> bool:
    """Tell whether an IP address is this machine's own, in 127.0.0.0/8 or ::1."""
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def shown(settings: Settings) -> str:
    """Return the servers' addresses as a message may show them: without the credentials in them."""
    return ", ".join(url.rpartition("@")[2] for url in settings.nats_servers)


def _knows_its_users(client: Client) -> bool:
    """Tell whether the server asks who connects: by users of any kind, or by certificates alone."""
    info = client._server_info  # noqa: SLF001  the library tells nothing of it
    return bool(info.get("auth_required") or info.get("tls_verify"))


def _peer(client: Client) -> str | None:
    """Return the address that the connection leads to, whatever name it was found by; None where it has just broken."""
    transport: Any = client._transport  # noqa: SLF001  the library offers no way to its socket
    peer = transport._io_writer.get_extra_info("peername")  # noqa: SLF001
    return str(peer[0]).partition("%")[0] if peer else None  # a link-local IPv6 address carries its zone
