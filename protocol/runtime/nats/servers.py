"""The NATS servers that a process accepts: 2.11 or newer, and with users unless they are on this machine.

A stranger on NATS could read tokens and answer commands. So a server without users is accepted on loopback only.
"""

import ipaddress

from nats.aio.client import Client

from protocol.errors import ConfigurationError
from protocol.runtime.nats.library.transport import knows_its_users, peer_address
from protocol.runtime.settings import PREFIX, ServingSettings, Settings, variable

MIN_VERSION = (2, 11)
ENVELOPE_BYTES = 32 * 1024  # room for a message's headers, with the token, and for the fields that we add to its body


def require_acceptable(client: Client, settings: Settings) -> None:
    """Raise `ConfigurationError` if the connected server is not acceptable. The sentence names the mend."""
    require_version(client)
    peer = peer_address(client)
    if peer is None or is_loopback(peer):
        return
    if settings.auth == "off":
        raise ConfigurationError(
            f"{PREFIX}AUTH=off is for loopback only, but NATS at {shown(settings)} is not on this machine: use one "
            "that is, or give a key to verify tokens with"
        )
    if not knows_its_users(client):
        raise ConfigurationError(
            f"NATS at {shown(settings)} lets everybody in and is not on this machine: give it users, as "
            "deploy/nats.conf does, or use one on loopback"
        )


def require_version(client: Client) -> None:
    """Raise `ConfigurationError` if the connected server is older than 2.11."""
    version = client.connected_server_version
    if (version.major, version.minor) < MIN_VERSION:
        raise ConfigurationError(
            f"nats-server is {version.major}.{version.minor}, but 2.11 or newer is needed: upgrade it"
        )


def require_room(client: Client, settings: ServingSettings) -> None:
    """Raise `ConfigurationError` if the server's `max_payload` has no room for `max_message_bytes` and our envelope."""
    room = client.max_payload - ENVELOPE_BYTES
    if settings.max_message_bytes > room:
        raise ConfigurationError(
            f"{variable('max_message_bytes')} is {settings.max_message_bytes}, but NATS takes messages up to "
            f"{client.max_payload} bytes: set {room} or less, or raise max_payload in nats.conf"
        )


def is_loopback(address: str) -> bool:
    """Tell whether an IP address is this machine's own, in 127.0.0.0/8 or ::1."""
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def shown(settings: Settings) -> str:
    """Return the servers' addresses for a log line or an error, without the credentials in them."""
    return ", ".join(url.rpartition("@")[2] for url in settings.nats_servers)
