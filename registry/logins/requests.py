"""A NATS server's question about a login, and the JWTs that answer it (ADR-26, auth callout).

The server's own signature is not verified, because a forged request gains nothing: its sender gets a user for a token
that it has already.
"""

import base64
import hashlib
import math
from typing import Any

import msgspec

from protocol.access import Principal
from protocol.runtime.nats.agent_login import permissions_of, user_name
from protocol.runtime.nats.login_keys import LoginKeys

ACCOUNT_NAME = "$G"  # of users in a configuration without accounts
VERSION = 2


class UnreadableLogin(ValueError):
    """The message is not a server's question about a login."""


class _AskingServer(msgspec.Struct, frozen=True):
    id: str
    name: str = ""


class _LoginClient(msgspec.Struct, frozen=True):
    host: str = ""
    name: str = ""


class _ConnectOptions(msgspec.Struct, frozen=True):
    auth_token: str = ""
    password: str = msgspec.field(default="", name="pass")
    jwt: str = ""


class LoginRequest(msgspec.Struct, frozen=True):
    """A login: the server, the client's key and the token."""

    server_id: _AskingServer
    user_nkey: str
    client_info: _LoginClient = _LoginClient()
    connect_opts: _ConnectOptions = _ConnectOptions()

    @property
    def token(self) -> str | None:
        """The token, which a client may send as NATS token, as password, or as JWT."""
        options = self.connect_opts
        return options.auth_token or options.password or options.jwt or None

    @property
    def host(self) -> str:
        """The client's address."""
        return self.client_info.host


class _Claims(msgspec.Struct, frozen=True):
    nats: LoginRequest


_claims = msgspec.json.Decoder(_Claims)
_HEAD = {"typ": "JWT", "alg": "ed25519-nkey"}


def read(jwt: bytes) -> LoginRequest:
    """Decode the request in a server's JWT. Raises `UnreadableLogin` for anything else."""
    try:
        _, body, _ = jwt.split(b".")
        return _claims.decode(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4))).nats
    except (ValueError, RecursionError) as exc:
        raise UnreadableLogin("not the JWT of a login") from exc


def admission(keys: LoginKeys, request: LoginRequest, principal: Principal, now: float) -> bytes:
    """Return the answer that admits a principal until its token expires.

    Raises `PermissionDenied` if its role may not use NATS.
    """
    publish, subscribe = permissions_of(principal)
    user = {
        "aud": ACCOUNT_NAME,
        "sub": request.user_nkey,
        "name": user_name(principal.tenant, principal.sub),
        **({} if math.isinf(principal.expires_at) else {"exp": int(principal.expires_at)}),
    }
    limits = dict.fromkeys(("subs", "data", "payload"), -1)  # unlimited; the server applies its own limits
    rights = {"pub": {"allow": publish}, "sub": {"allow": subscribe}}
    return _answer(keys, request, now, jwt=_signed(keys, user, now, type="user", **rights, **limits).decode())


def refusal(keys: LoginKeys, request: LoginRequest, reason: str, now: float) -> bytes:
    """Return the answer that refuses a login. The server writes the reason into its log."""
    return _answer(keys, request, now, error=reason)


def _answer(keys: LoginKeys, request: LoginRequest, now: float, **outcome: str) -> bytes:
    about = {"aud": request.server_id.id, "sub": request.user_nkey}
    return _signed(keys, about, now, type="authorization_response", **outcome)


def _signed(keys: LoginKeys, claims: dict[str, Any], now: float, **nats: Any) -> bytes:
    """Return a signed JWT in NATS's form: its id is a hash of its claims."""
    claims = {"iss": keys.account, "iat": int(now), "nats": nats | {"version": VERSION}, **claims}
    digest = hashlib.sha256(msgspec.json.encode(claims)).digest()
    claims["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    text = b".".join(_base64(msgspec.json.encode(part)) for part in (_HEAD, claims))
    return text + b"." + _base64(keys.sign(text))


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
