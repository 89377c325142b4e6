"""What a client brings back when its user has chosen: good for this call alone, on every replica."""

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from support.settings import SECRET, settings_for

from agent_api.mcp.choice import VALID_SECONDS, ChoiceSeal, chosen_client
from agent_api.settings import ApiSettings
from protocol.access import Principal
from protocol.errors import InvalidRequest

ANN = Principal("ann", "agent", "acme", 1e12)
ARGUMENTS = msgspec.Raw(b'{"a":1,"b":2}')
NONE = msgspec.Raw(b"{}")
OTHER_SECRET = "another-secret-of-at-least-thirty-two-bytes"


def seal(**settings: Any) -> ChoiceSeal:
    return ChoiceSeal(settings_for(ApiSettings, **settings))


def test_another_replica_opens_it() -> None:
    state = seal().seal(ANN, "add", ARGUMENTS, 100)
    seal().require(state, ANN, "add", msgspec.Raw(b'{"b":2, "a":1}'), 100 + VALID_SECONDS)


def test_it_is_good_while_secrets_change() -> None:
    state = seal().seal(ANN, "add", ARGUMENTS, 100)
    seal(jwt_secret=OTHER_SECRET, jwt_secrets_also=SECRET).require(state, ANN, "add", ARGUMENTS, 100)


@pytest.mark.parametrize(
    ("principal", "tool", "arguments", "now"),
    [
        (msgspec.structs.replace(ANN, sub="bob"), "add", ARGUMENTS, 100),
        (msgspec.structs.replace(ANN, tenant="other"), "add", ARGUMENTS, 100),
        (ANN, "remove", ARGUMENTS, 100),
        (ANN, "add", msgspec.Raw(b'{"a":2}'), 100),
        (ANN, "add", ARGUMENTS, 101 + VALID_SECONDS),
    ],
)
def test_it_is_good_for_one_call(principal: Principal, tool: str, arguments: Any, now: float) -> None:
    state = seal().seal(ANN, "add", ARGUMENTS, 100)
    with pytest.raises(InvalidRequest):
        seal().require(state, principal, tool, arguments, now)


@pytest.mark.parametrize("state", [None, "", ".", "e30.e30", "é.é", "=", "a" * 5000])
def test_what_nobody_sealed_is_refused(state: str | None) -> None:
    with pytest.raises(InvalidRequest):
        seal().require(state, ANN, "add", ARGUMENTS, 100)
    with pytest.raises(InvalidRequest):
        seal(jwt_secret=OTHER_SECRET).require(seal().seal(ANN, "add", NONE, 100), ANN, "add", NONE, 100)


KEYS_OF_OTHERS: list[dict[str, Any]] = [
    {"jwt_secret": None, "jwt_jwks_url": "https://login.example.com/keys"},
    {"jwt_secret": None, "auth": "off"},
]


@pytest.mark.parametrize("settings", KEYS_OF_OTHERS)
def test_without_a_shared_secret_nobody_is_asked(settings: Any) -> None:
    assert not seal(**settings).works
    with pytest.raises(InvalidRequest):
        seal(**settings).require(seal().seal(ANN, "add", NONE, 100), ANN, "add", NONE, 100)


@pytest.mark.parametrize("settings", [*KEYS_OF_OTHERS, {}])
def test_secret_for_resuming_is_one_for_choices(settings: Any) -> None:
    secrets = {**settings, "resume_secret": f"{OTHER_SECRET},{SECRET}"}
    state = seal(**secrets).seal(ANN, "add", ARGUMENTS, 100)
    seal(**{**secrets, "resume_secret": OTHER_SECRET}).require(state, ANN, "add", ARGUMENTS, 100)
    with pytest.raises(InvalidRequest):
        seal().require(state, ANN, "add", ARGUMENTS, 100)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ('{"a":{"x":1,"y":[2]}}', '{ "a": { "y": [2], "x": 1 } }', True),
        ('{"a":[1,2]}', '{"a":[2,1]}', False),
        (f'{{"a":"{"x" * 70_000}"}}', f'{{"a":"{"x" * 70_000}"}}', True),
        (f'{{"a":"{"x" * 70_000}"}}', f'{{"a":"{"y" * 70_000}"}}', False),
    ],
)
def test_arguments_have_to_be_the_same_however_they_are_written(first: str, second: str, same: bool) -> None:
    state = seal().seal(ANN, "add", msgspec.Raw(first.encode()), 100)
    expected: AbstractContextManager[Any] = nullcontext() if same else pytest.raises(InvalidRequest)
    with expected:
        seal().require(state, ANN, "add", msgspec.Raw(second.encode()), 100)


@pytest.mark.parametrize(
    ("answer", "client_id"),
    [
        (SimpleNamespace(action="accept", content={"client": "c1"}), "c1"),
        (SimpleNamespace(action="accept", content={"client": 7}), None),
        (SimpleNamespace(action="accept", content=None), None),
        (SimpleNamespace(action="decline", content={"client": "c1"}), None),
    ],
)
def test_choice_of_the_user(answer: Any, client_id: str | None) -> None:
    assert chosen_client({"client": answer}) == client_id
    assert chosen_client({}) is None
