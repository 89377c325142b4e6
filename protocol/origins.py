"""Checks web origins (RFC 6454) and `Host` headers, for the gateway and the agent API.

The setting is a comma-separated list of exact origins (`https://app.example.com`), of origins with any port
(`http://localhost:*`), or `*` for every origin. Browsers send origins in lower case and without a default port.

A page without an origin of its own, such as a file, a sandboxed frame or a `data:` URL, sends `null`. Some embedded
browsers send `file://` for a file. Both can be listed. But `null` admits every such page of every site.
"""

import re

from protocol.errors import ConfigurationError

ANY = "*"
OPAQUE = ("null", "file://")
LOOPBACK = (
    "http://localhost:*,http://127.0.0.1:*,http://[::1]:*,https://localhost:*,https://127.0.0.1:*,https://[::1]:*"
)

_ENTRY = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/:,\[\]?#@*]+)(:(\d{1,5}|\*))?")
_LOOPBACK_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_PORT = re.compile(r":\d{1,5}$")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Origins:
    """The allowed origins of a deployment. Raises `ConfigurationError` for an entry that no origin can match."""

    def __init__(self, setting: str) -> None:
        entries = [entry.lower() for entry in re.split(r"[,\s]+", setting) if entry]
        for entry in entries:
            if entry != ANY and entry not in OPAQUE and not _ENTRY.fullmatch(entry):
                raise ConfigurationError(
                    f"AGENTBRIDGE_ALLOWED_ORIGINS holds {entry!r}, but an origin is scheme://host, scheme://host:port, "
                    "scheme://host:*, null, file:// or *"
                )
        self._any = ANY in entries
        self._exact = frozenset(_without_default_port(entry) for entry in entries if not entry.endswith(":*"))
        self._any_port = frozenset(entry.removesuffix(":*") for entry in entries if entry.endswith(":*"))

    def allows(self, origin: str | None) -> bool:
        """Tell whether a request with this `Origin` header may proceed. One without it is no browser's, and may."""
        if origin is None or self._any:
            return True
        plain = _without_default_port(origin.lower())
        return plain in self._exact or _PORT.sub("", plain) in self._any_port


def names_loopback(host: str) -> bool:
    """Tell whether a `Host` header names this machine itself, on any port.

    If authentication is off, this is the only check that stops DNS rebinding: a web page lets its own host name resolve
    to 127.0.0.1. The browser then treats our answers as same-origin, so it sends no `Origin` with a GET, and CORS does
    not apply.
    """
    return _LOOPBACK_HOST.fullmatch(host) is not None


def _without_default_port(origin: str) -> str:
    scheme, _, _ = origin.partition("://")
    return origin.removesuffix(_DEFAULT_PORTS.get(scheme, ":"))
