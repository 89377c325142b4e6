"""One tree, one table: every error has a code, every code its meaning."""

import inspect
import re

import msgspec
import pytest
from support.paths import ROOT

from protocol import errors
from protocol.errors import BY_CODE, MEANINGS, BridgeError, Code, ErrorBody, from_body

CLASSES = [
    cls
    for cls in vars(errors).values()
    if inspect.isclass(cls) and issubclass(cls, BridgeError) and cls is not BridgeError
]
STATUSES = {
    "invalid_request": 400,
    "invalid_frame": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "client_not_found": 404,
    "unknown_capability": 404,
    "conflict": 409,
    "ambiguous_client": 409,
    "payload_too_large": 413,
    "invalid_parameters": 422,
    "rate_limited": 429,
    "overloaded": 429,
    "cancelled": 499,
    "command_failed": 500,
    "internal": 500,
    "client_lost": 502,
    "unavailable": 503,
    "timeout": 504,
}


def test_every_code_has_the_http_status_of_the_contract() -> None:
    assert {code.value: MEANINGS[code].http_status for code in Code} == STATUSES
    assert set(MEANINGS) == set(Code)


def test_only_what_certainly_did_not_run_is_retryable() -> None:
    assert {code.value for code in Code if MEANINGS[code].retryable} == {"overloaded", "rate_limited", "unavailable"}


def test_every_code_has_one_class_and_every_class_a_code_of_its_own() -> None:
    assert {cls.code for cls in CLASSES} == set(Code)
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)
    assert {cls.code.value: cls for cls in CLASSES} == BY_CODE


def test_tree_is_drawn_as_it_is() -> None:
    drawn = inspect.getdoc(errors) or ""
    for cls in CLASSES:
        assert f"{cls.__name__} ({cls.code.value})" in drawn


@pytest.mark.parametrize("cls", CLASSES)
def test_error_survives_its_journey(cls: type[BridgeError]) -> None:
    sent = cls("a sentence", details={"path": "/a"}).body()
    received = from_body(msgspec.json.decode(msgspec.json.encode(sent), type=ErrorBody))
    assert type(received) is cls
    assert (received.message, received.details) == ("a sentence", {"path": "/a"})


def test_retryable_stands_in_the_body() -> None:
    assert msgspec.json.decode(msgspec.json.encode(errors.Overloaded("full").body())) == {
        "code": "overloaded",
        "message": "full",
        "retryable": True,
    }


def test_code_of_a_newer_peer_is_internal() -> None:
    assert type(from_body(ErrorBody("of_tomorrow", "?", retryable=False))) is errors.Internal


def test_close_codes_are_in_the_private_range() -> None:
    codes = {name: value for name, value in vars(errors.CloseCode).items() if name.isupper()}
    assert len(set(codes.values())) == len(codes)
    assert all(1000 <= code <= 1012 or 4000 <= code <= 4999 for code in codes.values())


@pytest.mark.parametrize("name", [name for name in vars(errors.CloseCode) if name.isupper()])
def test_close_code_is_used(name: str) -> None:
    folders = ("gateway", "agent_api", "protocol/runtime/websocket")
    sources = (path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert any(re.search(rf"\bCloseCode\.{name}\b", source) for source in sources), (
        f"{name} is never sent or looked for"
    )


def test_meaning_names_a_phrase_for_people() -> None:
    assert MEANINGS[Code.CLIENT_NOT_FOUND].phrase == "Client not found"
    assert all(meaning.phrase for meaning in MEANINGS.values())
