"""What servers ask about a login, and the JWTs that answer."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, strategies
from nacl.signing import VerifyKey

from protocol.access import ADMIN, AGENT, APP, Principal
from protocol.errors import PermissionDenied
from protocol.runtime.nats.agent_login import inbox_prefix, user_name
from protocol.runtime.nats.login_keys import LoginKeys, new_seeds
from protocol.runtime.tokens import ANYONE
from registry.logins import requests
from registry.logins.requests import LoginRequest, UnreadableLogin

KEYS = LoginKeys(*new_seeds())
NOW, EXPIRES = 1000.7, 2000.9


def asked(**options: str) -> bytes:
    """Return a server's JWT; fields that nobody here reads are among them."""
    about = {"server_id": {"id": "NSERVER", "name": "n1", "xkey": "X"}, "user_nkey": "UUSER", "type": "request"}
    client = {"host": "192.0.2.7", "id": 5, "kind": "Client"}
    return b".".join([b"head", encoded({"nats": {**about, "client_info": client, "connect_opts": options}}), b"sig"])


def encoded(value: Any) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


def claims_of(jwt: bytes | str) -> dict[str, Any]:
    """Return what a JWT says, its signature checked."""
    data = jwt.encode() if isinstance(jwt, str) else jwt
    text, _, signature = data.rpartition(b".")
    public = base64.b32decode(KEYS.account + "=" * (-len(KEYS.account) % 8))[1:-2]  # kind of key, key, checksum
    VerifyKey(public).verify(text, base64.urlsafe_b64decode(signature + b"=="))
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text.split(b".")[1] + b"=="))
    return found


def request(**options: str) -> LoginRequest:
    return requests.read(asked(**options))


@pytest.mark.parametrize(
    ("options", "token"),
    [
        ({"auth_token": "t"}, "t"),
        ({"user": "ann", "pass": "t"}, "t"),
        ({"jwt": "t", "nkey": "U"}, "t"),
        ({"user": "gateway"}, None),
        ({}, None),
    ],
)
def test_token_is_found_wherever_a_client_puts_it(options: dict[str, str], token: str | None) -> None:
    assert (request(**options).token, request(**options).host) == (token, "192.0.2.7")


@pytest.mark.parametrize("jwt", [b"", b"a.b", b"a.!!.c", b"a.bnVsbA.c", b"a.e30.c", asked() + b".more"])
def test_what_is_no_request_is_told_as_such(jwt: bytes) -> None:
    with pytest.raises(UnreadableLogin):
        requests.read(jwt)


@given(strategies.binary())
def test_garbage_is_no_request(data: bytes) -> None:
    with pytest.raises(UnreadableLogin):
        requests.read(data)


def test_agent_is_let_in_with_its_subjects_until_its_token_expires() -> None:
    ann = Principal("ann", AGENT, "acme", EXPIRES)
    answer = claims_of(requests.admission(KEYS, request(auth_token="t"), ann, NOW))
    assert (answer["iss"], answer["aud"], answer["sub"]) == (KEYS.account, "NSERVER", "UUSER")
    assert answer["nats"]["type"] == "authorization_response"
    user = claims_of(answer["nats"]["jwt"])
    assert (user["iss"], user["aud"], user["sub"], user["exp"]) == (KEYS.account, "$G", "UUSER", 2000)
    assert user["name"] == user_name("acme", "ann")
    assert user["nats"]["pub"] == {"allow": ["agentbridge.acme.command.*", "agentbridge.acme.registry.*"]}
    inbox = f"{inbox_prefix('acme', 'ann')}.>"
    assert user["nats"]["sub"] == {"allow": [inbox, "agentbridge.acme.event.>", "agentbridge.acme.client.>"]}


@pytest.mark.parametrize("limit", ["users", "apps", "clients"])
@pytest.mark.parametrize("names", [frozenset[str](), frozenset({"one"})])
def test_limited_agent_hears_no_events(limit: str, names: frozenset[str]) -> None:
    limits: dict[str, Any] = {limit: names}
    user = permissions(Principal("ann", AGENT, "acme", EXPIRES, **limits))
    assert user["sub"] == {"allow": [f"{inbox_prefix('acme', 'ann')}.>"]}


def test_administrator_may_also_read_the_audit_and_ask_processes() -> None:
    user = permissions(Principal("ann", ADMIN, "acme", EXPIRES))
    assert "agentbridge.acme.audit.>" in user["sub"]["allow"]
    assert user["pub"]["allow"][2:] == [
        "$SRV.>",
        "$JS.API.STREAM.INFO.agentbridge_audit_acme",
        "$JS.API.DIRECT.GET.agentbridge_audit_acme",
    ]


def test_without_authentication_a_login_does_not_end() -> None:
    answer = claims_of(requests.admission(KEYS, request(), ANYONE, NOW))
    assert "exp" not in claims_of(answer["nats"]["jwt"])


def test_application_is_not_let_in() -> None:
    with pytest.raises(PermissionDenied, match="opens a gateway"):
        requests.admission(KEYS, request(auth_token="t"), Principal("ann", APP, "acme", EXPIRES), NOW)


def test_refusal_says_why_to_the_server() -> None:
    answer = claims_of(requests.refusal(KEYS, request(), "unauthenticated: no", NOW))
    assert (answer["nats"]["error"], "jwt" in answer["nats"]) == ("unauthenticated: no", False)


def permissions(principal: Principal) -> dict[str, Any]:
    answer = claims_of(requests.admission(KEYS, request(auth_token="t"), principal, NOW))
    found: dict[str, Any] = claims_of(answer["nats"]["jwt"])["nats"]
    return found
