"""Reads the opening handshake of a WebSocket: its token, its subprotocols, and whether its Origin is allowed.

A bad token is refused with a close code after the handshake, because a page in a browser can see that. A foreign Origin
gets 403 in the handshake.
"""

from collections.abc import Iterable, Sequence
from urllib.parse import parse_qs

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.typing import Subprotocol

from protocol.errors import BridgeError, CloseCode, Overloaded, PermissionDenied, Unavailable
from protocol.origins import Origins, names_loopback
from protocol.runtime.tokens import Verifier, bearer

SUBPROTOCOL = "agentbridge.v1"
BEARER_SUBPROTOCOL = "bearer."
RESUME_SUBPROTOCOL = "resume."
MAX_REASON_BYTES = 123  # RFC 6455 section 5.5


class TurnedAway(Exception):
    """Ends a connection that is not admitted, with a close code and a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = close_reason(reason)


def turned_away(error: BridgeError) -> TurnedAway:
    """Return the close code for an error while a connection opens. 1012 lets a client connect again."""
    if isinstance(error, Unavailable):
        code = CloseCode.RESTARTING
    else:
        code = CloseCode.TOO_MANY if isinstance(error, Overloaded) else CloseCode.REFUSED
    return TurnedAway(code, error.message)


def require_token(request: Request, verifier: Verifier) -> str | None:
    """Return the token of a handshake; None only if authentication is off.

    Raises `TurnedAway` if there is no token, `Unauthenticated` if two `Authorization` headers bring one.
    """
    return require_some(token_of(request), verifier)


def require_some(token: str | None, verifier: Verifier) -> str | None:
    """Return a token. Raises `TurnedAway` if there is none, unless authentication is off."""
    if not token and not verifier.off:
        raise TurnedAway(CloseCode.NO_CREDENTIALS, "authentication required")
    return token


def token_of(request: Request) -> str | None:
    """Return the token of a handshake: from `Authorization`, a `bearer.` subprotocol, or `?token=`, in this order.

    Raises `Unauthenticated` if two `Authorization` headers bring one.
    """
    token = bearer(*request.headers.get_all("Authorization"))
    if token:
        return token
    offered = (part.strip() for line in request.headers.get_all("Sec-WebSocket-Protocol") for part in line.split(","))
    bringing = _bringing_token(offered)
    if bringing is not None:
        return bringing.removeprefix(BEARER_SUBPROTOCOL)
    values = parse_qs(request.path.partition("?")[2]).get("token")
    return values[0] if values else None


def resume_token_of(request: Request) -> str | None:
    """Return the resume token of a handshake, from a `resume.` subprotocol or `?resume=`.

    Empty if the client wants one and has none yet; None if it does not ask to resume.
    """
    offered = (part.strip() for line in request.headers.get_all("Sec-WebSocket-Protocol") for part in line.split(","))
    bringing = next((each for each in offered if each.startswith(RESUME_SUBPROTOCOL)), None)
    if bringing is not None:
        return bringing.removeprefix(RESUME_SUBPROTOCOL)
    values = parse_qs(request.path.partition("?")[2], keep_blank_values=True).get("resume")
    return values[0] if values else None


def require_own_page(headers: Headers, origins: Origins, *, loopback_only: bool) -> None:
    """Raise `PermissionDenied` for a web page of a foreign origin, and with `loopback_only` for any other host name."""
    if loopback_only and not all(map(names_loopback, headers.get_all("Host"))):
        raise PermissionDenied("without authentication this serves localhost, 127.0.0.1 and [::1] only")
    if not all(map(origins.allows, headers.get_all("Origin"))):
        raise PermissionDenied("this origin is not in AGENTBRIDGE_ALLOWED_ORIGINS")


def select_subprotocol(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Return the subprotocol that an agent's WebSocket echoes: our own, if it is offered."""
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else last_resort(offered)


def last_resort(offered: Iterable[str]) -> Subprotocol | None:
    """Return the subprotocol to echo if ours is not offered: the one that carries the token, if there is one.

    A browser fails a handshake whose answer names none of the subprotocols that its page offers (WHATWG WebSockets,
    section 2). The alternative, to echo nothing, was tried: such a page could not connect at all.
    """
    bringing = _bringing_token(offered)
    return None if bringing is None else Subprotocol(bringing)


def _bringing_token(offered: Iterable[str]) -> str | None:
    return next((each for each in offered if each.startswith(BEARER_SUBPROTOCOL)), None)


def close_reason(text: str) -> str:
    """Cut a sentence to the 123 bytes that a close frame can carry."""
    return text.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
