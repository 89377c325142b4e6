"""What the opening handshake of a WebSocket says: whose token it brings, and whether a web page may open it here.

A refused token is told by a close code after the handshake, which browsers can see; a web page that has no business
here, by 403 before it.
"""

from collections.abc import Sequence
from urllib.parse import parse_qs

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.typing import Subprotocol

from protocol.errors import PermissionDenied
from protocol.origins import Origins, names_loopback
from protocol.runtime.auth import bearer

SUBPROTOCOL = "agentbridge.v1"
BEARER_SUBPROTOCOL = "bearer."
MAX_REASON_BYTES = 123  # RFC 6455 section 5.5


def token_of(request: Request) -> str | None:
    """Return the token of a handshake: from `Authorization`, a `bearer.` subprotocol, or `?token=`, in this order.

    Raises `Unauthenticated` for an `Authorization` of another scheme.
    """
    token = bearer(", ".join(request.headers.get_all("Authorization")))
    if token:
        return token
    offered = (part.strip() for line in request.headers.get_all("Sec-WebSocket-Protocol") for part in line.split(","))
    for subprotocol in offered:
        if subprotocol.startswith(BEARER_SUBPROTOCOL):
            return subprotocol.removeprefix(BEARER_SUBPROTOCOL)
    values = parse_qs(request.path.partition("?")[2]).get("token")
    return values[0] if values else None


def require_own_page(headers: Headers, origins: Origins, *, loopback_only: bool) -> None:
    """Raise `PermissionDenied` for a web page of a foreign origin; with `loopback_only`, for any other host's name."""
    if loopback_only and not all(map(names_loopback, headers.get_all("Host"))):
        raise PermissionDenied("without authentication this serves localhost, 127.0.0.1 and [::1] only")
    if not all(map(origins.allows, headers.get_all("Origin"))):
        raise PermissionDenied("this origin is not in AGENTBRIDGE_ALLOWED_ORIGINS")


def select_subprotocol(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Echo our own subprotocol only: the one that carries a token must not come back."""
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None


def close_reason(text: str) -> str:
    """Return as much of a sentence as a close frame can carry."""
    return text.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
