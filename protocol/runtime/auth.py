"""Tokens: JSON Web Tokens (RFC 7519) verified, cached for a while, turned into principals; and minted for development.

One algorithm family is pinned by the kind of key: HS256 for a secret, RS/PS/ES/EdDSA for a public key or a JWKS URL, so
that a public key can never be taken for a secret. `exp` and `aud` are required. Tokens are never logged.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from nats.aio.msg import Msg

from protocol.access import ADMIN, ROLES, Principal
from protocol.errors import ConfigurationError, PermissionDenied, Unauthenticated, Unavailable
from protocol.ids import is_token
from protocol.messages import AUTHORIZATION_HEADER
from protocol.runtime.settings import PREFIX, Settings

CACHE_SECONDS = 300
CACHE_ENTRIES = 10_000
MAX_TOKEN_CHARS = 8192
DEFAULT_TENANT = "default"
SECRET_ALGORITHMS = ["HS256"]
PUBLIC_KEY_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
JWKS_TIMEOUT_SECONDS = 5
JWKS_PAUSE_SECONDS = 2
MAX_EXPIRY = 253_402_300_799  # the end of the year 9999: neither NaN nor infinity, which Python's JSON lets through

log = logging.getLogger(__name__)
_Names = Annotated[list[Annotated[str, msgspec.Meta(max_length=256)]], msgspec.Meta(max_length=1000)]


class _Claims(msgspec.Struct, frozen=True):
    sub: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    role: str
    exp: Annotated[float, msgspec.Meta(ge=0, le=MAX_EXPIRY)]
    tenant: str = DEFAULT_TENANT
    permissions: _Names = []
    users: _Names | None = None
    apps: _Names | None = None
    clients: _Names | None = None


ANYONE = Principal("anonymous", ADMIN, DEFAULT_TENANT, float("inf"), frozenset({"*"}))


class Verifier:
    """Turns tokens into principals, by the key that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._off = settings.auth == "off"
        self._fetching = asyncio.Lock()
        self._cache: OrderedDict[str, tuple[Principal, float]] = OrderedDict()
        self._jwks = _KeySet(settings.jwt_jwks_url) if settings.jwt_jwks_url else None
        self._key: Any
        self._key, self._algorithms = ("", PUBLIC_KEY_ALGORITHMS) if self._off or self._jwks else _fixed_key(settings)

    @property
    def off(self) -> bool:
        """Whether authentication is off: everybody is an anonymous administrator, on loopback."""
        return self._off

    def verify_now(self, token: str | None, *, expired_too: bool = False) -> Principal | None:
        """Return whom the token speaks for, or None where only `verify()` can tell, by asking for the key set.

        Raises `Unauthenticated` for a missing or bad one. `expired_too` accepts an expired token whose signature is
        good (cancel and probe outlive a token).
        """
        if self._off:
            return ANYONE
        if not token or len(token) > MAX_TOKEN_CHARS:
            raise Unauthenticated("send a token: Authorization: Bearer <token>")
        entry = self._cache.get(token)
        now = time.time()
        if entry is not None and entry[1] > now:
            return _unexpired(entry[0], now, expired_too)
        if self._jwks is not None:
            return None
        return _unexpired(self._decode(token, self._key), now, expired_too)

    async def verify(self, token: str | None, *, expired_too: bool = False) -> Principal:
        """Return whom the token speaks for, asking for the key set where need be.

        Raises `Unauthenticated` as `verify_now()` does, `Unavailable` where the key set cannot be fetched.
        """
        principal = self.verify_now(token, expired_too=expired_too)
        if principal is not None:
            return principal
        assert token is not None
        key = await self._signing_key(token)
        return _unexpired(self._decode(token, key), time.time(), expired_too)

    async def _signing_key(self, token: str) -> Any:
        assert self._jwks is not None
        kid = _key_id(token)
        try:
            async with self._fetching:  # one at a time: a flood of unknown keys must not become a flood of fetches
                return (await asyncio.to_thread(self._jwks.get_signing_key, kid)).key
        except jwt.PyJWKClientConnectionError as exc:
            raise Unavailable("the key set that verifies tokens cannot be fetched; try again in a moment") from exc
        except jwt.PyJWTError as exc:
            raise Unauthenticated("the token is not signed by a key of this deployment") from exc

    def _decode(self, token: str, key: Any) -> Principal:
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=self._algorithms,
                audience=self._settings.jwt_audience,
                issuer=self._settings.jwt_issuer,
                options={"require": ["exp", "aud", "sub"], "verify_exp": False},
            )
            principal = _principal(msgspec.convert(claims, _Claims))
        except (jwt.PyJWTError, msgspec.ValidationError, ValueError, OverflowError, RecursionError) as exc:
            raise Unauthenticated(_reason(exc)) from exc
        self._remember(token, principal)
        return principal

    def _remember(self, token: str, principal: Principal) -> None:
        self._cache[token] = (principal, time.time() + CACHE_SECONDS)
        if len(self._cache) > CACHE_ENTRIES:
            self._cache.popitem(last=False)


def bearer(header: str | None) -> str | None:
    """Return the token of an `Authorization` header (RFC 6750 section 2.1), None where there is none.

    Raises `Unauthenticated` for another scheme.
    """
    if not header:
        return None
    scheme, _, token = header.strip().partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("the Authorization header must be: Bearer <token>")
    return token.strip()


def token_of(msg: Msg) -> str | None:
    """Return the token of a message on NATS, None where there is none; raise `Unauthenticated` for another scheme.

    NATS tells the cases of header names apart, but HTTP-minded clients write them in lower case.
    """
    headers = msg.headers
    if not headers:
        return None
    value = headers.get(AUTHORIZATION_HEADER)
    if value is None:
        wanted = AUTHORIZATION_HEADER.lower()
        value = next((text for name, text in headers.items() if name.lower() == wanted), None)
    return bearer(value)


def require_same_identity(before: Principal, after: Principal) -> None:
    """Raise `PermissionDenied` where a refreshed token changes who the connection speaks for."""
    if (before.sub, before.tenant, before.role) != (after.sub, after.tenant, after.role):
        raise PermissionDenied("a refreshed token must keep sub, tenant and role")


def mint(
    secret: str,
    sub: str,
    role: str,
    ttl_seconds: int,
    *,
    audience: str = "agentbridge",
    issuer: str | None = None,
    tenant: str | None = None,
    permissions: Iterable[str] = (),
    limits: dict[str, list[str]] | None = None,
) -> str:
    """Sign a token with the shared secret; for development, tests and the `token` command."""
    claims: dict[str, Any] = {"sub": sub, "role": role, "aud": audience, "exp": int(time.time()) + ttl_seconds}
    claims |= {"iss": issuer} if issuer else {}
    claims |= {"tenant": tenant} if tenant else {}
    claims |= {"permissions": list(permissions)} if permissions else {}
    return jwt.encode(claims | (limits or {}), secret, algorithm="HS256")


class _KeySet(jwt.PyJWKClient):
    """A key set behind a URL that is left in peace for a moment where it could not be fetched."""

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout=JWKS_TIMEOUT_SECONDS)
        self._fetch_next = 0.0

    def fetch_data(self) -> Any:
        """Fetch the key set; raise `PyJWKClientConnectionError` for whatever stands in the way."""
        if time.monotonic() < self._fetch_next:
            raise jwt.PyJWKClientConnectionError("the last attempt failed a moment ago")
        try:
            return super().fetch_data()
        except (jwt.PyJWTError, OSError, ValueError, RecursionError) as exc:
            self._fetch_next = time.monotonic() + JWKS_PAUSE_SECONDS
            log.warning("cannot fetch the key set of %sJWT_JWKS_URL: %s", PREFIX, type(exc).__name__)
            raise jwt.PyJWKClientConnectionError("the key set cannot be fetched") from exc


class _WrongClaim(ValueError):
    """A claim that is well formed and still means nothing here."""


def _key_id(token: str) -> str:
    """Return the id of the key that a token says it is signed with."""
    try:
        return str(jwt.get_unverified_header(token).get("kid"))
    except (jwt.PyJWTError, ValueError, RecursionError) as exc:
        raise Unauthenticated(_reason(exc)) from exc


def _fixed_key(settings: Settings) -> tuple[Any, list[str]]:
    if settings.jwt_secret:
        return settings.jwt_secret, SECRET_ALGORITHMS
    assert settings.jwt_public_key_file is not None
    try:
        return load_pem_public_key(Path(settings.jwt_public_key_file).read_bytes()), PUBLIC_KEY_ALGORITHMS
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigurationError(f"{PREFIX}JWT_PUBLIC_KEY_FILE should be a public key in PEM form") from exc


def _principal(claims: _Claims) -> Principal:
    if claims.role not in ROLES:
        raise _WrongClaim("role must be app, agent or admin")
    if not is_token(claims.tenant):
        raise _WrongClaim("tenant must be 1 to 64 letters, digits, '-' or '_'")
    if not claims.sub.isprintable():
        raise _WrongClaim("sub must be printable text")
    return Principal(
        sub=claims.sub,
        role=claims.role,
        tenant=claims.tenant,
        expires_at=claims.exp,
        permissions=frozenset(claims.permissions),
        users=None if claims.users is None else frozenset(claims.users),
        apps=None if claims.apps is None else frozenset(claims.apps),
        clients=None if claims.clients is None else frozenset(claims.clients),
    )


def _unexpired(principal: Principal, now: float, expired_too: bool) -> Principal:
    if principal.expires_at <= now and not expired_too:
        raise Unauthenticated("the token has expired; get a fresh one")
    return principal


def _reason(error: Exception) -> str:
    """Return a sentence about a bad token that says what to mend and nothing about keys."""
    match error:
        case jwt.MissingRequiredClaimError(claim=claim):
            return f"the token lacks the claim `{claim}`"
        case jwt.InvalidAudienceError():
            return "the token is for another audience"
        case jwt.InvalidIssuerError():
            return "the token is from another issuer"
        case jwt.ImmatureSignatureError():
            return "the token is not valid yet"
        case msgspec.ValidationError() | _WrongClaim():
            return f"the token's claims are wrong: {error}"
        case _:
            return "the token does not verify"
