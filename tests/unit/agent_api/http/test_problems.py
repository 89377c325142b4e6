import json

import pytest

from agent_api.http.problems import HttpFault, http_answer_of
from protocol.errors import (
    MEANINGS,
    BridgeError,
    ClientNotFound,
    Code,
    CommandFailed,
    Overloaded,
    RateLimited,
    Unauthenticated,
)


def test_refusal_has_the_tables_status_and_phrase() -> None:
    answer = http_answer_of(CommandFailed("the list is full", details={"code": "FULL"}), "r-1")
    assert answer.status == MEANINGS[Code.COMMAND_FAILED].http_status
    assert json.loads(answer.body) == {
        "error": "Command failed",
        "code": "command_failed",
        "message": "the list is full",
        "retryable": False,
        "requestId": "r-1",
        "details": {"code": "FULL"},
    }


def test_retryable_is_written_out_and_what_is_absent_left_out() -> None:
    assert json.loads(http_answer_of(ClientNotFound()).body) == {
        "error": "Client not found",
        "code": "client_not_found",
        "message": "no connected client with this id",
        "retryable": False,
    }


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (Unauthenticated("who?"), (b"www-authenticate", b"Bearer")),
        (Overloaded("too many"), (b"retry-after", b"1")),
        (RateLimited.for_seconds(0.01, "too fast"), (b"retry-after", b"1")),
        (RateLimited.for_seconds(1, "too fast"), (b"retry-after", b"1")),
        (RateLimited.for_seconds(1.2, "too fast"), (b"retry-after", b"2")),
        (RateLimited("a peer that does not say"), (b"retry-after", b"1")),
        (RateLimited("nor this one", details={"retryAfterMs": "soon"}), (b"retry-after", b"1")),
    ],
)
def test_code_brings_its_header(error: BridgeError, header: tuple[bytes, bytes]) -> None:
    assert http_answer_of(error).headers == (header,)


def test_fault_of_http_keeps_its_own_status() -> None:
    answer = http_answer_of(HttpFault(415, "JSON, please"))
    assert answer.status == 415
    assert json.loads(answer.body)["error"] == "Unsupported media type"
    assert json.loads(answer.body)["code"] == "invalid_request"
