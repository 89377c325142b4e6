"""Tokens: what a forger, a careless issuer and a broken key server can send."""

import asyncio
import base64
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from nats.aio.client import Client
from nats.aio.msg import Msg
from support.settings import SECRET, agent_token, app_token, settings_for

from protocol.access import Principal
from protocol.errors import ConfigurationError, PermissionDenied, Unauthenticated, Unavailable
from protocol.runtime import tokens
from protocol.runtime.settings import Settings
from protocol.runtime.tokens import (
    CACHE_SECONDS,
    Standing,
    TokenOwner,
    Verifier,
    bearer,
    require_same_identity,
    token_of,
)
from protocol.runtime.websocket.handshake import close_reason

NOW, DAY = int(time.time()), 86_400  # the whole run may take long
CLAIMS = {"sub": "agent-1", "role": "agent", "aud": "agentbridge", "exp": NOW + DAY}


def sign(changes: dict[str, Any] | None = None, key: Any = SECRET, algorithm: str = "HS256", **header: Any) -> str:
    """Sign the claims of a good token with changes; a claim changed to None is left out."""
    claims = {name: value for name, value in {**CLAIMS, **(changes or {})}.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers=header or None)


def by_secret(**values: str | None) -> Verifier:
    return Verifier(settings_for(Settings, "nats://127.0.0.1", **values))


async def refusal(verifier: Verifier, token: str | None) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await verifier.verify(token)
    return caught.value.message


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def public_pem(key: rsa.RSAPrivateKey) -> str:
    pem = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(*pem).decode()


@pytest.fixture
def by_public_key(public_pem: str, tmp_path: Path) -> Verifier:
    file = tmp_path / "key.pem"
    file.write_text(public_pem)
    return Verifier(settings_for(Settings, jwt_secret=None, jwt_public_key_file=file))


async def test_good_token_names_its_principal() -> None:
    limits = {"users": ["ann"], "apps": [], "clients": ["c1"]}
    token = agent_token("bot", tenant="acme", permissions=["todo"], limits=limits)
    principal = await by_secret().verify(token)
    assert principal == Principal(
        "bot",
        "agent",
        "acme",
        principal.expires_at,
        frozenset({"todo"}),
        frozenset({"ann"}),
        frozenset(),
        frozenset({"c1"}),
    )
    assert NOW < principal.expires_at < NOW + 2 * DAY


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": None}, "the token lacks the claim `exp`"),
        ({"aud": None}, "the token lacks the claim `aud`"),
        ({"sub": None}, "the token lacks the claim `sub`"),
        ({"role": None}, "the token lacks the claim `role`"),
        ({"aud": "another"}, "the token is for another audience"),
        ({"aud": ["one", "another"]}, "the token is for another audience"),
        ({"aud": {"agentbridge": 1}}, "the token is for another audience"),
        ({"exp": NOW - 1}, "the token has expired; get a fresh one"),
        ({"exp": 0}, "the token has expired; get a fresh one"),
        ({"exp": str(NOW + DAY)}, "the token's claims are wrong: "),
        ({"exp": True}, "the token's claims are wrong: "),
        ({"exp": float("nan")}, "the token's claims are wrong: "),
        ({"exp": float("inf")}, "the token's claims are wrong: "),
        ({"exp": 1e300}, "the token's claims are wrong: "),
        ({"exp": -1}, "the token's claims are wrong: "),
        ({"nbf": NOW + DAY}, "the token is not valid yet"),
        ({"nbf": NOW + 3600}, "the token is not valid yet"),
        ({"nbf": float("inf")}, "the token's claims are wrong: nbf must be a number, the seconds since 1970"),
        ({"nbf": "tomorrow"}, "the token's claims are wrong: nbf must be a number, the seconds since 1970"),
        ({"role": "root"}, "the token's claims are wrong: role must be app, agent or admin"),
        ({"role": ["admin"]}, "the token's claims are wrong: "),
        ({"sub": "\ud800"}, "the token's claims are wrong: sub must be printable text"),
        ({"role": ""}, "the token's claims are wrong: role must be app, agent or admin"),
        ({"sub": ""}, "the token's claims are wrong: "),
        ({"sub": 42}, "the token's claims are wrong: sub must be text of 1 to 256 characters"),
        ({"sub": ["ann"]}, "the token's claims are wrong: sub must be text"),
        ({"sub": "x" * 257}, "the token's claims are wrong: "),
        ({"tenant": "a.b"}, "the token's claims are wrong: tenant must be 1 to 64 letters, digits, '-' or '_'"),
        ({"tenant": "*"}, "the token's claims are wrong: tenant must be"),
        ({"tenant": "_gateway"}, "the token's claims are wrong: tenant must be"),
        ({"tenant": ""}, "the token's claims are wrong: tenant must be"),
        ({"tenant": 1}, "the token's claims are wrong: "),
        ({"permissions": "admin"}, "the token's claims are wrong: "),
        ({"permissions": [1]}, "the token's claims are wrong: "),
        ({"users": "ann"}, "the token's claims are wrong: users must be a list of at most 1000 short texts"),
        ({"users": {"ann": 1}}, "the token's claims are wrong: "),
        ({"clients": ["c"] * 1001}, "the token's claims are wrong: "),
    ],
)
async def test_wrong_claim_is_refused_with_what_to_mend(changes: dict[str, Any], reason: str) -> None:
    told = await refusal(by_secret(), sign(changes))
    assert told.startswith(reason)
    assert close_reason(told) == told


@pytest.mark.parametrize(
    "name", ["exp", "nbf", "sub", "role", "aud", "tenant", "permissions", "users", "apps", "clients"]
)
async def test_null_is_no_claim_that_was_left_out(name: str) -> None:
    token = jwt.api_jws.encode(json.dumps(CLAIMS | {name: None}).encode(), SECRET, "HS256")
    reason = await refusal(by_secret(), token)
    assert name in reason
    assert reason.startswith(("the token's claims are wrong: ", "the token lacks the claim "))


@pytest.mark.parametrize(
    "changes",
    [
        {"nbf": NOW},
        {"nbf": 0},
        {"iat": NOW + DAY},
        {"iat": "yesterday"},
        {"iat": float("inf")},
        {"jti": 5},
        {"iss": 5},
        {"aud": ["another", "agentbridge"]},
    ],
)
async def test_claim_that_limits_nothing_is_no_reason_to_refuse(changes: dict[str, Any]) -> None:
    token = jwt.api_jws.encode(json.dumps(CLAIMS | changes).encode(), SECRET, "HS256")
    assert (await by_secret().verify(token)).sub == "agent-1"


def unsigned(header: dict[str, Any] | str, claims: dict[str, Any] | str = CLAIMS, signature: str = "") -> str:
    return ".".join([*(_part(part) for part in (header, claims)), signature])


def _part(value: dict[str, Any] | str) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


FORGERIES = [
    "x",
    "..",
    "a.b.c",
    "é.é.é",
    "\ud800",
    " ",
    "a.b.c.d",
    unsigned({"alg": "none"}),
    unsigned({"alg": "None", "typ": "JWT"}),
    unsigned({"alg": "HS256"}),
    unsigned({"alg": ["HS256"]}),
    unsigned({}),
    unsigned("[]"),
    unsigned('{"alg":"HS256","n":' + "9" * 5000 + "}"),
    unsigned("[" * 3000 + "]" * 3000),
    unsigned('{"a":' * 1000 + "1" + "}" * 1000),
    sign(key="another-secret-of-more-than-32-bytes-x"),
    sign(key=SECRET * 2, algorithm="HS512"),
    sign() + "x",
    sign()[:-5],
    sign().rpartition(".")[0] + ".",
]


@pytest.mark.parametrize("token", FORGERIES, ids=range(len(FORGERIES)))
async def test_forgery_is_refused_without_a_word_about_keys(token: str, by_public_key: Verifier) -> None:
    for verifier in (by_secret(), by_public_key):
        assert await refusal(verifier, token) == "the token does not verify"


@pytest.mark.parametrize(
    "token", [None, "", "x" * 8193, sign({"pad": "x" * 9000})], ids=["none", "empty", "x", "signed"]
)
async def test_absent_or_huge_token_asks_for_one(token: str | None) -> None:
    assert await refusal(by_secret(), token) == "send a token: Authorization: Bearer <token>"


async def test_issuer_is_checked_where_one_is_set() -> None:
    verifier = by_secret(jwt_issuer="https://login.example.com")
    assert (await verifier.verify(sign({"iss": "https://login.example.com"}))).sub == "agent-1"
    assert await refusal(verifier, sign({"iss": "https://evil.example.com"})) == "the token is from another issuer"
    assert "iss" in await refusal(verifier, sign())


async def test_token_signed_by_the_private_key_is_believed(key: rsa.RSAPrivateKey, by_public_key: Verifier) -> None:
    assert (await by_public_key.verify(sign(key=key, algorithm="RS256"))).sub == "agent-1"


async def test_public_key_is_never_taken_for_a_secret(public_pem: str, by_public_key: Verifier) -> None:
    for text in (public_pem, public_pem.strip()):
        signed = unsigned({"alg": "HS256", "typ": "JWT"}).rstrip(".")
        digest = _hmac(text, signed)
        assert await refusal(by_public_key, f"{signed}.{digest}") == "the token does not verify"


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
async def test_key_of_another_kind_is_no_failure_of_ours(algorithm: str, by_public_key: Verifier) -> None:
    other = ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else ed25519.Ed25519PrivateKey.generate()
    token = sign(key=other, algorithm=algorithm)
    assert await refusal(by_public_key, token) == "the token does not verify"


def _hmac(secret: str, text: str) -> str:
    algorithm = jwt.get_algorithm_by_name("HS256")
    return base64.urlsafe_b64encode(algorithm.sign(text.encode(), secret.encode())).decode().rstrip("=")


@pytest.mark.parametrize(
    "content", [b"", b"no key", b"\xff\xfe", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]
)
def test_file_without_a_public_key_stops_the_process(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="AGENTBRIDGE_JWT_PUBLIC_KEY_FILE should be a public key in PEM form"):
        Verifier(settings_for(Settings, jwt_secret=None, jwt_public_key_file=file))


def test_private_key_is_no_public_key(key: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file.write_bytes(key.private_bytes(*pem))
    with pytest.raises(ConfigurationError, match="should be a public key"):
        Verifier(settings_for(Settings, jwt_secret=None, jwt_public_key_file=file))


class Clock:
    """The time that auth sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.time()
        monkeypatch.setattr("protocol.runtime.tokens.time.time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def test_token_of_an_issuer_whose_clock_is_ahead_is_good(clock: Clock) -> None:
    verifier, token = by_secret(), sign({"nbf": clock.now + 2})
    assert verifier.verify_now(token)
    clock.now -= 0.1
    assert await refusal(by_secret(), token) == "the token is not valid yet"
    assert await refusal(by_secret(), sign({"exp": clock.now - 0.1})) == "the token has expired; get a fresh one"


async def test_token_ends_at_its_expiry_though_cached(clock: Clock) -> None:
    verifier, token = by_secret(), app_token(ttl_seconds=60)
    principal = await verifier.verify(token)
    assert verifier.verify_now(token) is principal
    clock.now = principal.expires_at - 0.001
    assert verifier.verify_now(token) is principal
    clock.now = principal.expires_at
    assert await refusal(verifier, token) == "the token has expired; get a fresh one"
    assert await verifier.verify(token, expired_too=True) == principal


async def test_expired_token_still_cancels_but_a_forged_one_does_not() -> None:
    verifier = by_secret()
    assert (await verifier.verify(agent_token("bot", ttl_seconds=-60), expired_too=True)).sub == "bot"
    with pytest.raises(Unauthenticated, match="the token does not verify"):
        await verifier.verify(sign({"exp": NOW - 60})[:-4], expired_too=True)
    assert await refusal(verifier, agent_token("bot", ttl_seconds=-60)) == "the token has expired; get a fresh one"


async def test_cache_forgets_after_five_minutes(clock: Clock) -> None:
    verifier, token = by_secret(), app_token(ttl_seconds=3600)
    principal = await verifier.verify(token)
    clock.now += tokens.CACHE_SECONDS
    again = await verifier.verify(token)
    assert again == principal
    assert again is not principal


async def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CACHE_ENTRIES", 3)
    verifier, known = by_secret(), list[tuple[str, Principal]]()
    for token in (app_token(f"user-{number}") for number in range(10)):
        known.append((token, await verifier.verify(token)))
    newest_first = [await verifier.verify(token) is principal for token, principal in reversed(known)]
    assert newest_first == [True] * 3 + [False] * 7


async def test_refused_token_is_not_cached() -> None:
    verifier, token = by_secret(), sign({"role": "root"})
    for _ in range(2):
        await refusal(verifier, token)
    assert verifier.standing(token) is Standing.BAD


async def test_anyone_may_where_authentication_is_off() -> None:
    principal = await by_secret(auth="off", jwt_secret=None).verify(None)
    assert (principal.role, principal.tenant, principal.permissions) == ("admin", "default", frozenset({"*"}))


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, True),
        ({"exp": NOW + DAY + 1, "permissions": ["x"], "users": []}, True),
        ({"sub": "other"}, False),
        ({"role": "admin"}, False),
        ({"tenant": "acme"}, False),
    ],
)
async def test_refreshed_token_keeps_the_identity(changes: dict[str, Any], kept: bool) -> None:
    verifier = by_secret()
    before, after = await verifier.verify(sign()), await verifier.verify(sign(changes))
    if kept:
        require_same_identity(before, after)
    else:
        with pytest.raises(PermissionDenied, match="must keep sub, tenant and role"):
            require_same_identity(before, after)


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (None, None),
        ("", None),
        ("Bearer t", "t"),
        ("bearer  t ", "t"),
        (" BEARER t", "t"),
        ("Bearer", ""),
        ("Bearer ", ""),
    ],
)
def test_bearer_header_is_read(header: str | None, token: str | None) -> None:
    assert bearer(header) == token


@pytest.mark.parametrize("header", ["Basic dXNlcg==", "t", "Bearert", "Token t"])
def test_other_scheme_is_passed_over(header: str) -> None:
    assert bearer(header) is None
    assert bearer(header, "Bearer t") == bearer("Bearer t", header) == "t"


@pytest.mark.parametrize(
    "headers", [["Bearer a", "Bearer b"], ["Bearer a", "Bearer a"], ["bearer", "Basic x", "BEARER a"]]
)
def test_two_tokens_are_refused(headers: list[str]) -> None:
    with pytest.raises(Unauthenticated, match="two Authorization headers with a token"):
        bearer(*headers)


class KeyServer:
    """A local server of a key set: what it answers can be changed, and how often it was asked is counted."""

    def __init__(self, keys: dict[str, rsa.RSAPrivateKey]) -> None:
        self.requests = 0
        self.status, self.body = 200, self.key_set(keys)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                if outer.status:
                    self.send_response(outer.status)
                    self.end_headers()
                    self.wfile.write(outer.body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/keys"

    @staticmethod
    def key_set(keys: dict[str, rsa.RSAPrivateKey]) -> bytes:
        algorithm = jwt.get_algorithm_by_name("RS256")
        jwks = [
            json.loads(algorithm.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"} for kid, key in keys.items()
        ]
        return json.dumps({"keys": jwks}).encode()


@pytest.fixture
def key_server(key: rsa.RSAPrivateKey) -> Iterator[KeyServer]:
    keys = KeyServer({"k1": key})
    thread = threading.Thread(target=keys.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield keys
    keys.server.shutdown()
    thread.join()
    keys.server.server_close()


def by_key_set(keys: KeyServer) -> Verifier:
    return Verifier(settings_for(Settings, jwt_secret=None, jwt_jwks_url=keys.url))


async def test_key_is_found_by_its_id_and_fetched_once(key_server: KeyServer, key: rsa.RSAPrivateKey) -> None:
    verifier = by_key_set(key_server)
    tokens = [sign({"sub": f"agent-{number}"}, key, "RS256", kid="k1") for number in range(5)]
    assert verifier.verify_now(tokens[0]) is None
    found = await asyncio.gather(*(verifier.verify(token) for token in tokens))
    assert [principal.sub for principal in found] == [f"agent-{number}" for number in range(5)]
    assert key_server.requests == 1
    assert verifier.verify_now(tokens[0]) is found[0]


async def test_unknown_keys_do_not_become_a_flood_of_fetches(key_server: KeyServer, key: rsa.RSAPrivateKey) -> None:
    verifier = by_key_set(key_server)
    for number in range(20):
        token = sign(key=key, algorithm="RS256", kid=f"unknown-{number}")
        assert await refusal(verifier, token) == "the token is not signed by a key of this deployment"
    assert key_server.requests <= 2


async def test_token_that_names_no_key_is_tried_against_the_only_one(
    key_server: KeyServer, key: rsa.RSAPrivateKey
) -> None:
    verifier = by_key_set(key_server)
    assert (await verifier.verify(sign(key=key, algorithm="RS256"))).sub == "agent-1"
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for number in range(5):
        token = sign({"sub": f"{number}"}, stranger, "RS256")
        assert await refusal(verifier, token) == "the token does not verify"
        assert verifier.standing(token) is Standing.BAD
    assert key_server.requests == 1


async def test_token_that_names_no_key_finds_the_successor_of_the_only_one(
    key_server: KeyServer, key: rsa.RSAPrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = by_key_set(key_server)
    await verifier.verify(sign(key=key, algorithm="RS256"))
    successor = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    key_server.body = key_server.key_set({"k2": successor})
    token = sign(key=successor, algorithm="RS256")
    await refusal(verifier, token)
    monkeypatch.setattr(tokens, "JWKS_COOLDOWN_SECONDS", 0)
    assert (await verifier.verify(token)).sub == "agent-1"
    assert key_server.requests == 2


async def test_token_that_names_no_key_fits_no_set_of_two(key_server: KeyServer, key: rsa.RSAPrivateKey) -> None:
    key_server.body = key_server.key_set({"k1": key, "k2": key})
    reason = await refusal(by_key_set(key_server), sign(key=key, algorithm="RS256"))
    assert reason == "the token names no key (`kid`), and the key set has several"


async def test_key_of_a_set_may_have_no_id_if_it_is_the_only_one_for_signatures(
    key_server: KeyServer, key: rsa.RSAPrivateKey
) -> None:
    [signing] = json.loads(key_server.body)["keys"]
    del signing["kid"]
    key_server.body = json.dumps({"keys": [signing, signing | {"use": "enc"}]}).encode()
    assert (await by_key_set(key_server).verify(sign(key=key, algorithm="RS256"))).sub == "agent-1"


async def test_secret_is_no_key_of_a_key_set(key_server: KeyServer, public_pem: str) -> None:
    signed = unsigned({"alg": "HS256", "kid": "k1"}).rstrip(".")
    assert await refusal(by_key_set(key_server), f"{signed}.{_hmac(public_pem, signed)}") == "the token does not verify"


@pytest.mark.parametrize("token", FORGERIES, ids=range(len(FORGERIES)))
async def test_forgery_is_refused_with_a_key_set_too(token: str, key_server: KeyServer) -> None:
    assert (await refusal(by_key_set(key_server), token)).startswith("the token ")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b""),
        (0, b""),
        (302, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"\xff"),
        (200, b'{"keys":[]}'),
        (200, b"[" * 9999),
    ],
)
async def test_broken_key_server_is_told_as_unavailable_and_left_in_peace(
    status: int, body: bytes, key_server: KeyServer, key: rsa.RSAPrivateKey
) -> None:
    verifier = by_key_set(key_server)
    key_server.status, key_server.body = status, body
    for _ in range(5):
        with pytest.raises(Unavailable, match="the key set that verifies tokens cannot be fetched"):
            await verifier.verify(sign(key=key, algorithm="RS256", kid="k1"))
    assert key_server.requests == 1


async def test_known_keys_verify_while_the_key_server_is_down(key_server: KeyServer, key: rsa.RSAPrivateKey) -> None:
    verifier = by_key_set(key_server)
    await verifier.verify(sign(key=key, algorithm="RS256", kid="k1"))
    key_server.status = 500
    with pytest.raises((Unavailable, Unauthenticated)):
        await verifier.verify(sign(key=key, algorithm="RS256", kid="k2"))
    assert (await verifier.verify(sign({"sub": "another"}, key, "RS256", kid="k1"))).sub == "another"


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        (None, None),
        ({}, None),
        ({"Other": "Bearer x"}, None),
        ({"Authorization": "Bearer x"}, "x"),
        ({"authorization": "bearer x"}, "x"),
        ({"Authorization": "Bearer x", "Agentbridge-Progress": "_INBOX.a"}, "x"),
        ({"AUTHORIZATION": "Basic y", "Authorization": "Bearer x"}, "x"),
        ({"Authorization": "Basic y\nBearer x"}, "x"),
    ],
)
def test_token_of_a_message_is_in_its_header_whatever_the_case(headers: dict[str, str] | None, token: str) -> None:
    assert token_of(Msg(Client(), headers=headers)) == token


@pytest.mark.parametrize(
    "headers", [{"Authorization": "Bearer x\nBearer x"}, {"authorization": "Bearer y", "Authorization": "Bearer x"}]
)
def test_two_tokens_of_a_message_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated, match="two Authorization headers with a token"):
        token_of(Msg(Client(), headers=headers))


# --- what is known of a token ---


async def test_standing_of_a_token_is_known_without_verifying_it(clock: Clock) -> None:
    verifier = by_secret()
    good, forged = sign({"exp": clock.now + 1000}), sign(key=SECRET * 2)
    assert [verifier.standing(token) for token in (None, "", "nonsense", "x" * 9000)] == [Standing.BAD] * 4
    assert [verifier.standing(token) for token in (good, forged)] == [Standing.NEW, Standing.BAD]
    verifier.verify_now(good)
    with pytest.raises(Unauthenticated):
        verifier.verify_now(forged)
    assert [verifier.standing(token) for token in (good, forged)] == [Standing.GOOD, Standing.BAD]
    clock.now += CACHE_SECONDS + 1
    assert verifier.standing(good) is Standing.GOOD, "though it must be verified anew"
    clock.now += 1000
    assert verifier.standing(good) is Standing.EXPIRED


def test_forged_token_is_told_from_a_new_good_one_at_once(clock: Clock) -> None:
    """So a flood of forged ones takes none of the room that new ones have."""
    verifier = by_secret(jwt_secrets_also="another-secret-of-thirty-two-bytes")
    signed = [sign({"exp": clock.now + 9}, key) for key in (SECRET, "another-secret-of-thirty-two-bytes", SECRET * 2)]
    altered = [signed[0][:-3] + "abc", signed[0].replace(".", ".a", 1), signed[0] + "=", "a.b.c"]
    assert [verifier.standing(token) for token in signed] == [Standing.NEW, Standing.NEW, Standing.BAD]
    assert [verifier.standing(token) for token in altered] == [Standing.BAD] * 4


async def test_claim_of_a_new_token_is_read_unverified_if_a_key_set_verifies(
    key_server: KeyServer, key: rsa.RSAPrivateKey
) -> None:
    verifier, token = by_key_set(key_server), sign({"sub": "ann"}, key=key, algorithm="RS256", kid="k1")
    assert verifier.claimed(token) == TokenOwner("default", "ann", is_known=False)
    head, _, signature = token.split(".")
    for odd in (f"{head}.!.{signature}", f"{head}.e30.{signature}", f"{head}.x.{signature}", "a.b.c", "a"):
        assert verifier.claimed(odd) == TokenOwner("", "", is_known=False), odd
    assert verifier.claimed(None) is None
    await verifier.verify(token)
    assert verifier.claimed(token) == TokenOwner("default", "ann", is_known=True)
    assert by_secret().claimed(token) is None, "its signature is known to be good"


async def test_token_whose_key_is_gone_is_good_no_more(clock: Clock) -> None:
    verifier = by_secret()
    token = sign({"exp": clock.now + 1000})
    verifier.verify_now(token)
    verifier._key = SECRET * 2
    clock.now += CACHE_SECONDS + 1
    with pytest.raises(Unauthenticated):
        verifier.verify_now(token)
    assert verifier.standing(token) is Standing.BAD


async def test_refused_tokens_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.runtime.tokens.REFUSED_ENTRIES", 3)
    verifier, tokens = by_secret(), [sign({"exp": 1 + number}) for number in range(5)]
    monkeypatch.setattr(verifier, "_key", SECRET * 2)
    monkeypatch.setattr(verifier, "_is_forged", lambda token: False)
    for token in tokens:
        with pytest.raises(Unauthenticated):
            verifier.verify_now(token)
    assert [verifier.standing(token) for token in tokens] == [Standing.NEW] * 2 + [Standing.BAD] * 3


async def test_everybody_is_good_where_authentication_is_off() -> None:
    assert by_secret(auth="off", jwt_secret=None).standing(None) is Standing.GOOD


async def test_token_of_an_unknown_key_is_remembered_as_refused(key_server: KeyServer, key: rsa.RSAPrivateKey) -> None:
    verifier, token = by_key_set(key_server), sign(key=key, algorithm="RS256", kid="unknown")
    with pytest.raises(Unauthenticated):
        await verifier.verify(token)
    assert verifier.standing(token) is Standing.BAD
