"""Verifies JSON Web Tokens (RFC 7519), caches them, and turns them into principals. Mints tokens for development.

The kind of key decides the algorithms: HS256 for a secret, RS/PS/ES/EdDSA for a public key or a JWKS URL. So a public
key can never be used as a secret. `exp` and `aud` are required. A token ends exactly at `exp`. `nbf` may lie 2 s ahead,
because clocks differ. `iat` is ignored, because it limits nothing. Tokens are never logged.
"""

import asyncio
import base64
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.types import Options
from nats.aio.msg import Msg

from protocol.access import ADMIN, ROLES, Principal
from protocol.errors import ConfigurationError, PermissionDenied, Unauthenticated, Unavailable
from protocol.ids import is_token
from protocol.messages import AUTHORIZATION_HEADER
from protocol.runtime.settings import PREFIX, Settings, split_list

CACHE_SECONDS = 300
CACHE_ENTRIES = 10_000
REFUSED_ENTRIES = 10_000
MAX_TOKEN_CHARS = 8192
DEFAULT_TENANT = "default"
SECRET_ALGORITHMS = ["HS256"]
PUBLIC_KEY_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
JWKS_TIMEOUT_SECONDS = 5
JWKS_PAUSE_SECONDS = 2
JWKS_COOLDOWN_SECONDS = 30  # between fetches of the key set for tokens with an unknown key
NOT_BEFORE_LEEWAY_SECONDS = 2
MAX_NAME_CHARS = 128
MAX_EXPIRY = 253_402_300_799  # the end of the year 9999; also excludes NaN and infinity, which Python's JSON accepts

log = logging.getLogger(__name__)
_Names = Annotated[list[Annotated[str, msgspec.Meta(max_length=256)]], msgspec.Meta(max_length=1000)]
_Instant = Annotated[float, msgspec.Meta(ge=0, le=MAX_EXPIRY)]


class _TokenClaims(msgspec.Struct, frozen=True):
    """The claims. A limit is absent or a list; null is refused, because it could mean no client or every client."""

    sub: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    role: str
    exp: _Instant
    nbf: _Instant = 0
    tenant: str = DEFAULT_TENANT
    permissions: _Names = []
    users: _Names | msgspec.UnsetType = msgspec.UNSET
    apps: _Names | msgspec.UnsetType = msgspec.UNSET
    clients: _Names | msgspec.UnsetType = msgspec.UNSET
    name: Any = None


class TokenOwner(NamedTuple):
    """The tenant and `sub` in a token, and whether a good token has named the same before."""

    tenant: str
    sub: str
    is_known: bool


class _ClaimNames(msgspec.Struct):
    sub: str
    tenant: str = DEFAULT_TENANT


_claim_decoder = msgspec.json.Decoder(_ClaimNames)
_NOBODY = TokenOwner("", "", is_known=False)
_NAMES = "a list of at most 1000 short texts"
_LIMIT = f"{_NAMES}; if it is left out, there is no limit"
_INSTANT = "a number, the seconds since 1970"
_SHAPES = {
    "sub": "text of 1 to 256 characters",
    "role": "app, agent or admin",
    "exp": _INSTANT,
    "nbf": _INSTANT,
    "tenant": "text of 1 to 64 letters, digits, '-' or '_'",
    "permissions": _NAMES,
    "users": _LIMIT,
    "apps": _LIMIT,
    "clients": _LIMIT,
}
_CHECKED: Options = {
    "require": ["exp", "aud", "sub", "role"],
    "verify_exp": False,  # `_require_unexpired()` does, because an expired token still cancels
    "verify_nbf": False,  # `_principal()` does
    "verify_iat": False,
    "verify_sub": False,  # `_TokenClaims` does, with a sentence that names the claim
    "verify_jti": False,
}

_BEARER = "Bearer "
ANYONE = Principal("anonymous", ADMIN, DEFAULT_TENANT, float("inf"), frozenset({"*"}))


class Standing(Enum):
    """What a verifier knows of a token without decoding it."""

    GOOD = "good"  # verified before, and not expired
    EXPIRED = "expired"  # verified before, and expired
    NEW = "new"
    BAD = "bad"  # missing, malformed, or refused a moment ago


class Verifier:
    """Turns tokens into principals, with the key in the settings.

    `require_admitted` raises `PermissionDenied` for an agent that an administrator has disconnected, although its token
    is good.
    """

    def __init__(self, settings: Settings, require_admitted: Callable[[Principal], None] | None = None) -> None:
        self._settings = settings
        self._require_admitted = require_admitted
        self._off = settings.auth == "off"
        self._fetching = asyncio.Lock()
        self._cache: OrderedDict[str, tuple[Principal, float]] = OrderedDict()
        self._refused: OrderedDict[int, None] = OrderedDict()  # hashes, since a token may have 8 KB
        self._agents: OrderedDict[tuple[str, str], None] = OrderedDict()  # tenant and `sub` of good tokens
        self._jwks = _KeySet(settings.jwt_jwks_url) if settings.jwt_jwks_url else None
        self._more_keys = settings.more_secrets if settings.jwt_secret else []
        self._key: Any
        self._key, self._algorithms = ("", PUBLIC_KEY_ALGORITHMS) if self._off or self._jwks else _fixed_key(settings)

    @property
    def off(self) -> bool:
        """Whether authentication is off. Then every caller is an anonymous administrator, on loopback only."""
        return self._off

    def standing(self, token: str | None) -> Standing:
        """Return what is known of a token, at the cost of a table lookup.

        If the key is a secret, the signature of a new token is checked, too. That takes 3 µs, and keeps forged tokens
        from using up the rate of new good ones. A good token stays known after its five minutes in the cache.
        """
        if self._off:
            return Standing.GOOD
        if not token or len(token) > MAX_TOKEN_CHARS or token.count(".") != 2:
            return Standing.BAD
        entry = self._cache.get(token)
        if entry is not None:
            return Standing.GOOD if entry[0].expires_at > time.time() else Standing.EXPIRED
        return Standing.BAD if hash(token) in self._refused or self._is_forged(token) else Standing.NEW

    def _is_forged(self, token: str) -> bool:
        """Tell whether none of our secrets has signed a token. With a public key return False, because that is slow."""
        if self._algorithms is not SECRET_ALGORITHMS:
            return False
        signed, _, signature = token.encode().rpartition(b".")
        return not any(hmac.compare_digest(_signature(key, signed), signature) for key in (self._key, *self._more_keys))

    def claimed(self, token: str | None) -> TokenOwner | None:
        """Return the owner that a new token claims, unverified; None if its signature is known to be good.

        The rate of new tokens is shared by claimed owner. So forged tokens with one `sub` do not use up the shares of
        others, and those with invented `sub`s not the share of a known agent with a fresh token.
        """
        if token is None or self._algorithms is SECRET_ALGORITHMS:
            return None
        try:
            payload = token.split(".")[1]
            named = _claim_decoder.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        except (msgspec.MsgspecError, ValueError, IndexError):
            return _NOBODY
        return TokenOwner(named.tenant, named.sub, (named.tenant, named.sub) in self._agents)

    def known(self, token: str | None) -> Principal | None:
        """Return the principal of a token that was verified before. It may have expired since."""
        if self._off:
            return ANYONE
        entry = None if token is None else self._cache.get(token)
        return None if entry is None else entry[0]

    def verify_now(self, token: str | None, *, expired_too: bool = False) -> Principal | None:
        """Return the token's principal, or None if the key set must be fetched first, as `verify()` does.

        With `expired_too` an expired token with a good signature is accepted, because cancel and probe outlive a token.

        Raises `Unauthenticated` for a missing or bad token, `PermissionDenied` for an agent that an administrator has
        disconnected.
        """
        if self._off:
            return ANYONE
        if not token or len(token) > MAX_TOKEN_CHARS:
            raise Unauthenticated("send a token: Authorization: Bearer <token>")
        entry = self._cache.get(token)
        now = time.time()
        if entry is not None and entry[1] > now:
            return self._admitted(entry[0], now, expired_too)
        if self._jwks is not None:
            return None
        return self._admitted(self._decode(token, self._key), now, expired_too)

    async def verify(self, token: str | None, *, expired_too: bool = False) -> Principal:
        """Return the token's principal. Fetch the key set if needed.

        Raises `Unauthenticated` as `verify_now()` does, `Unavailable` if the key set cannot be fetched.
        """
        principal = self.verify_now(token, expired_too=expired_too)
        if principal is not None:
            return principal
        assert token is not None
        try:
            principal = await self._decode_by_key_set(token)
        except Unauthenticated:
            self._remember_refused(token)
            raise
        return self._admitted(principal, time.time(), expired_too)

    def _admitted(self, principal: Principal, now: float, expired_too: bool) -> Principal:
        _require_unexpired(principal, now, expired_too)
        if self._require_admitted is not None:
            self._require_admitted(principal)
        return principal

    async def _decode_by_key_set(self, token: str) -> Principal:
        kid = _key_id(token)
        key = await self._signing_key(kid)
        try:
            return self._decode(token, key)
        except Unauthenticated as exc:
            if kid is not None or not isinstance(exc.__cause__, jwt.InvalidSignatureError):
                raise
            fresh = await self._signing_key(kid, refresh=True)  # the set's only key may have changed
            if fresh is key:
                raise
        return self._decode(token, fresh)

    async def _signing_key(self, kid: str | None, *, refresh: bool = False) -> Any:
        assert self._jwks is not None
        try:
            async with self._fetching:  # one at a time: a flood of unknown keys must not become a flood of fetches
                return await asyncio.to_thread(self._jwks.find, kid, refresh)
        except jwt.PyJWKClientConnectionError as exc:
            raise Unavailable("the key set that verifies tokens cannot be fetched; try again in a moment") from exc
        except _UnnamedKey as exc:
            raise Unauthenticated("the token names no key (`kid`), and the key set has several") from exc
        except jwt.PyJWTError as exc:
            raise Unauthenticated("the token is not signed by a key of this deployment") from exc

    def _decode(self, token: str, key: Any) -> Principal:
        try:
            principal = _principal(_read_claims(self._claims(token, key)))
        except (
            jwt.PyJWTError,
            ValueError,
            TypeError,
            OverflowError,
            RecursionError,
        ) as exc:  # TypeError: another kind of key
            self._remember_refused(token)
            raise Unauthenticated(_reason(exc)) from exc
        self._remember(token, principal)
        return principal

    def _claims(self, token: str, key: Any) -> dict[str, Any]:
        """Return the claims of a token that this key has signed, or one of the other accepted secrets."""
        left = [key, *self._more_keys]
        while True:
            try:
                return jwt.decode(
                    token,
                    left.pop(0),
                    algorithms=self._algorithms,
                    audience=self._settings.audiences,
                    issuer=self._settings.jwt_issuer,
                    options=_CHECKED,
                )
            except jwt.InvalidSignatureError:
                if not left:
                    raise

    def _remember(self, token: str, principal: Principal) -> None:
        self._cache[token] = (principal, time.time() + CACHE_SECONDS)
        if len(self._cache) > CACHE_ENTRIES:
            self._cache.popitem(last=False)
        self._refused.pop(hash(token), None)
        self._agents[principal.tenant, principal.sub] = None
        if len(self._agents) > CACHE_ENTRIES:
            self._agents.popitem(last=False)

    def _remember_refused(self, token: str) -> None:
        self._cache.pop(token, None)  # its key is gone since it was good
        self._refused[hash(token)] = None
        if len(self._refused) > REFUSED_ENTRIES:
            self._refused.popitem(last=False)


def _signature(secret: str, signed: bytes) -> bytes:
    """Return the signature of HS256 (RFC 7518 section 3.2) as it stands in a token."""
    return base64.urlsafe_b64encode(hmac.digest(secret.encode(), signed, "sha256")).rstrip(b"=")


def bearer(*headers: str | None) -> str | None:
    """Return the token in the `Authorization` headers (RFC 6750 section 2.1), or None if there is none.

    Other schemes are ignored, because a proxy may add its own `Basic`. Raises `Unauthenticated` for two tokens, because
    a proxy might check one of them and the process behind it the other.
    """
    if len(headers) == 1 and headers[0] is not None and headers[0].startswith(_BEARER):  # as nearly always
        return headers[0][len(_BEARER) :].strip()
    found = None
    for header in headers:
        scheme, _, token = (header or "").strip().partition(" ")
        if scheme.lower() != "bearer":
            continue
        if found is not None:
            raise Unauthenticated("there are two Authorization headers with a token; send one")
        found = token.strip()
    return found


def token_of(msg: Msg) -> str | None:
    """Return the token of a message on NATS, or None if there is none. Raises `Unauthenticated` for two tokens.

    Header names on NATS are case-sensitive, but some clients write them in lower case, so both are read. If a header
    comes twice, its values are joined by line breaks (`parse_headers()`).
    """
    headers = msg.headers
    if not headers:
        return None
    if len(headers) == 1 and AUTHORIZATION_HEADER in headers and "\n" not in headers[AUTHORIZATION_HEADER]:
        return bearer(headers[AUTHORIZATION_HEADER])  # as nearly always
    wanted = AUTHORIZATION_HEADER.lower()
    return bearer(*(line for name, text in headers.items() if name.lower() == wanted for line in text.split("\n")))


def require_same_identity(before: Principal, after: Principal) -> None:
    """Raise `PermissionDenied` if a refreshed token changes the connection's `sub`, tenant or role."""
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
    """Sign a token with the shared secret, for development, tests and the `token` command.

    If `audience` lists several with commas between, the token has the first one.
    """
    claims: dict[str, Any] = {
        "sub": sub,
        "role": role,
        "aud": split_list(audience)[0],
        "exp": int(time.time()) + ttl_seconds,
    }
    claims |= {"iss": issuer} if issuer else {}
    claims |= {"tenant": tenant} if tenant else {}
    claims |= {"permissions": list(permissions)} if permissions else {}
    return jwt.encode(claims | (limits or {}), secret, algorithm="HS256")


class _KeySet(jwt.PyJWKClient):
    """A key set at a URL. After a failed fetch it waits a moment before the next one."""

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout=JWKS_TIMEOUT_SECONDS, cooldown_duration=JWKS_COOLDOWN_SECONDS)
        self._fetch_next = self._fetched = 0.0

    def find(self, kid: str | None, refresh: bool = False) -> Any:
        """Return the key with this id, or without an id the only signing key.

        With `refresh` the set is fetched first, unless it was fetched within 30 s. Raises `PyJWTError`; that is
        `_UnnamedKey` if there is no id and the set has several keys.
        """
        if kid is not None:
            return self.get_signing_key(kid).key
        due = time.monotonic() >= self._fetched + JWKS_COOLDOWN_SECONDS
        keys = [each for each in self.get_jwk_set(refresh and due).keys if each.public_key_use in ("sig", None)]
        if len(keys) != 1:
            raise _UnnamedKey
        return keys[0].key

    def fetch_data(self) -> Any:
        """Fetch the key set; raise `PyJWKClientConnectionError` for any failure."""
        if time.monotonic() < self._fetch_next:
            raise jwt.PyJWKClientConnectionError("the last attempt failed a moment ago")
        try:
            found = super().fetch_data()
        except (jwt.PyJWTError, OSError, ValueError, RecursionError) as exc:
            self._fetch_next = time.monotonic() + JWKS_PAUSE_SECONDS
            log.warning("cannot fetch the key set of %sJWT_JWKS_URL: %s", PREFIX, type(exc).__name__)
            raise jwt.PyJWKClientConnectionError("the key set cannot be fetched") from exc
        self._fetched = time.monotonic()
        return found


class _UnnamedKey(jwt.PyJWTError):
    """A token names no key, and the set has several."""


class _WrongClaim(ValueError):
    """A claim has a value that is not allowed."""


class _TooEarly(ValueError):
    """The token is not valid yet."""


def _key_id(token: str) -> str | None:
    """Return the key id in a token's header, or None if it has none."""
    try:
        kid: str | None = jwt.get_unverified_header(token).get("kid")
        return kid
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


def _read_claims(claims: dict[str, Any]) -> _TokenClaims:
    try:
        return msgspec.convert(claims, _TokenClaims)
    except msgspec.ValidationError as exc:
        name = next(field.name for field in msgspec.structs.fields(_TokenClaims) if _is_wrong(field, claims))
        raise _WrongClaim(f"{name} must be {_SHAPES[name]}") from exc


def _is_wrong(field: msgspec.structs.FieldInfo, claims: dict[str, Any]) -> bool:
    if field.name not in claims:
        return False
    try:
        msgspec.convert(claims[field.name], field.type)
    except msgspec.ValidationError:
        return True
    return False


def _principal(claims: _TokenClaims) -> Principal:
    if claims.nbf > time.time() + NOT_BEFORE_LEEWAY_SECONDS:
        raise _TooEarly
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
        users=_limit(claims.users),
        apps=_limit(claims.apps),
        clients=_limit(claims.clients),
        name=_shown_name(claims.name),
    )


def _shown_name(name: Any) -> str | None:
    """Return a name that can be shown to people, or None, because issuers may write anything into this claim."""
    return name if isinstance(name, str) and 0 < len(name) <= MAX_NAME_CHARS and name.isprintable() else None


def _limit(names: list[str] | msgspec.UnsetType) -> frozenset[str] | None:
    return None if names is msgspec.UNSET else frozenset(names)


def _require_unexpired(principal: Principal, now: float, expired_too: bool) -> None:
    if principal.expires_at <= now and not expired_too:
        raise Unauthenticated("the token has expired; get a fresh one")


def _reason(error: Exception) -> str:
    """Return a sentence about a bad token. It names the remedy, and tells nothing about keys."""
    match error:
        case jwt.MissingRequiredClaimError(claim=claim):
            return f"the token lacks the claim `{claim}`"
        case jwt.InvalidAudienceError():
            return "the token is for another audience"
        case jwt.InvalidIssuerError():
            return "the token is from another issuer"
        case _TooEarly():
            return "the token is not valid yet"
        case _WrongClaim():
            return f"the token's claims are wrong: {error}"
        case _:
            return "the token does not verify"
