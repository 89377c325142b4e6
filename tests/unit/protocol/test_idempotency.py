"""What is remembered of a command under a key, which other ones are the same, and which headers hold a key."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec
from protocol.access import AGENT, Principal
from protocol.errors import ClientNotFound, Conflict, Internal, InvalidRequest, PermissionDenied
from protocol.idempotency import IdempotencyEntry, content_of, decode_entry, entry_key, one_key, read_header
from protocol.messages import CommandRequest, CommandResponse, check_command

ENTRY = IdempotencyEntry(
    body="b",
    reservation="reservation-1",
    gateway_id="gw-1",
    client_id="c1",
    user="ann",
    app="todo",
    request_id="r1",
    at="now",
)
DONE = CommandResponse(request_id="r1", status="success", result=msgspec.Raw(b"3"), client_id="c1", duration_ms=7)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def principal(sub: str = "agent-1", tenant: str = "default", **limits: Any) -> Principal:
    return Principal(sub, AGENT, tenant, float("inf"), **limits)


def command(parameters: bytes = b"{}", **more: Any) -> CommandRequest:
    return CommandRequest(target=more.pop("target", "f"), parameters=msgspec.Raw(parameters), **more)


# --- the same command ---


def test_timeout_request_id_and_layout_do_not_matter() -> None:
    first = command(b'{"a": 1, "b": {"c": [1, 2], "d": "\\u00e9"}}', request_id="r1", timeout_ms=5, sent_at=1)
    again = command('{"b":{"d":"é","c":[1,2]},"a":1}'.encode(), request_id="r2", timeout_ms=9, idempotency_key="k")
    assert content_of(first) == content_of(again)


@pytest.mark.parametrize(
    "other",
    [
        command(b'{"a": 2}'),
        command(b'{"a": "1"}'),
        command(b'{"a": 1.5}'),
        command(b'{"a": [1]}'),
        command(b'{"A": 1}'),
        command(b'{"a": 1, "b": null}'),
        command(b'{"a": 1}', target="g"),
        command(b'{"a": 1}', action="run"),
        command(b'{"a": 1}', action=""),
    ],
)
def test_whatever_the_application_could_tell_apart_is_another_command(other: CommandRequest) -> None:
    assert content_of(other) != content_of(command(b'{"a": 1}'))


@pytest.mark.parametrize(
    "odd", [b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"a":1e999}', b'{"a":' + b"9" * 5000 + b"}"]
)
def test_parameters_that_python_cannot_read_are_compared_as_they_stand(odd: bytes) -> None:
    assert content_of(command(odd)) == content_of(command(odd))
    assert content_of(command(odd)) != content_of(command(b"{}"))


@given(st.dictionaries(st.text(max_size=5), _json, max_size=4))
def test_order_of_members_never_matters(parameters: dict[str, Any]) -> None:
    turned = dict(reversed(parameters.items()))
    texts = json.dumps(parameters).encode(), json.dumps(turned, ensure_ascii=False, indent=1).encode(errors="replace")
    if json.loads(texts[0]) == json.loads(texts[1]):
        assert content_of(command(texts[0])) == content_of(command(texts[1]))


# --- keys ---


def test_key_belongs_to_tenant_and_sub() -> None:
    pairs = [("a", "bc"), ("ab", "c"), ("1:a", "bc"), ("", "abc")]
    keys = [entry_key(principal(sub), key) for sub, key in pairs] + [entry_key(principal("a", "acme"), "bc")]
    assert len(set(keys)) == len(keys)
    assert keys[-1].startswith("acme.")
    assert all(len(key.partition(".")[2]) == 64 for key in keys)


def test_key_of_a_sub_that_is_no_unicode_has_a_place() -> None:
    assert entry_key(principal("\ud800"), "k") != entry_key(principal("\ud801"), "k")


@pytest.mark.parametrize(
    ("value", "key"),
    [("abc", "abc"), ('"abc"', "abc"), (' "a\\"b\\\\c" ', 'a"b\\c'), ("a,b;c=1", "a,b;c=1"), ("x" * 255, "x" * 255)],
)
def test_header_may_be_quoted_or_bare(value: str, key: str) -> None:
    assert read_header(value) == key


@pytest.mark.parametrize(
    "value", ["", '""', '"', '"a', "a b", '"a b"', '"a"; x=1', '"a", "b"', "a, b", "\xe9", "x" * 256]
)
def test_header_that_is_no_key_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        read_header(value)


def test_key_may_stand_in_the_header_in_the_body_or_in_both() -> None:
    assert one_key(None, None) is None
    assert one_key('"k"', None) == one_key(None, "k") == one_key("k", "k") == "k"
    with pytest.raises(InvalidRequest, match="another one"):
        one_key("k", "l")


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256])
def test_key_in_a_body_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest, match="`idempotencyKey`"):
        check_command(command(idempotency_key=key))


# --- the entry ---


def test_entry_survives_the_bucket() -> None:
    ended = ENTRY.end(DONE, 1000)
    assert decode_entry(codec.encode(ENTRY)) == ENTRY
    assert not ENTRY.ended
    found = decode_entry(codec.encode(ended))
    assert found.ended
    assert found.answer("r2") == msgspec.structs.replace(DONE, request_id="r2", replayed=True)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"stream":"x","seq":1}'])
def test_what_is_no_entry_is_internal(data: bytes) -> None:
    with pytest.raises(Internal):
        decode_entry(data)


def test_outcome_too_large_to_keep_says_that_there_was_one() -> None:
    answer = ENTRY.end(DONE, 10).answer("r2")
    assert answer.error is not None
    assert (answer.error.code, answer.error.retryable) == ("payload_too_large", False)
    assert "was executed" in answer.error.message


def test_lost_entry_is_client_lost_to_everybody() -> None:
    answer = ENTRY.lose().answer("r2")
    assert answer.error is not None
    assert (answer.request_id, answer.client_id, answer.error.code) == ("r2", "c1", "client_lost")


@pytest.mark.parametrize(
    ("body", "client_id", "same"), [("b", "c1", True), ("b", None, True), ("b", "c2", False), ("x", "c1", False)]
)
def test_other_body_or_client_is_a_conflict(body: str, client_id: str | None, same: bool) -> None:
    if same:
        ENTRY.require_same(body, client_id)
    else:
        with pytest.raises(Conflict):
            ENTRY.require_same(body, client_id)


@pytest.mark.parametrize(
    ("caller", "error"),
    [
        (principal(users=frozenset({"bob"})), ClientNotFound),
        (principal(apps=frozenset({"other"})), ClientNotFound),
        (principal(clients=frozenset()), ClientNotFound),
        (principal(), PermissionDenied),
    ],
)
def test_outcome_is_not_told_beyond_the_limits_of_a_token(caller: Principal, error: type[Exception]) -> None:
    entry = msgspec.structs.replace(ENTRY, permissions=["todo"])
    with pytest.raises(error):
        entry.require_visible(caller)
    entry.require_visible(principal(permissions=frozenset({"todo"}), users=frozenset({"ann"})))
