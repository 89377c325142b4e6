"""Subjects: what comes from outside can neither reroute a message nor widen a subscription."""

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol import ids, subjects
from protocol.errors import InvalidRequest
from protocol.subjects import ClientAddress

tokens = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True)
event_names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)
ILL_IDS = [
    "",
    ".",
    "a.b",
    "*",
    ">",
    "a*",
    "a b",
    "a\r\nPUB x 1",
    "_none",
    "-a",
    "a" * 65,
    "é",
    "a\x00",
    "a\n",
    "\u0661",
]


@given(tenant=tokens, op=st.sampled_from(["list", "get", "find"]))
def test_registry_subject_is_parsed_back(tenant: str, op: str) -> None:
    assert subjects.parse_registry(subjects.registry(tenant, op)) == (tenant, op)


@given(tenant=tokens, client_id=tokens)
def test_key_is_parsed_back(tenant: str, client_id: str) -> None:
    assert subjects.parse_key(subjects.client_key(tenant, client_id)) == ClientAddress(tenant, client_id)


@given(gateway_id=tokens)
def test_our_own_keys_belong_to_no_client(gateway_id: str) -> None:
    assert subjects.parse_key(subjects.gateway_key(gateway_id)) is None


@pytest.mark.parametrize("ident", ILL_IDS)
def test_ill_id_becomes_no_command_subject(ident: str) -> None:
    with pytest.raises(InvalidRequest, match="`clientId` must be"):
        subjects.command("default", ident)
    with pytest.raises(InvalidRequest, match="`tenant` must be"):
        subjects.command(ident, "c1")


@pytest.mark.parametrize("ident", ILL_IDS)
def test_ill_id_is_refused_by_every_check(ident: str) -> None:
    assert not ids.is_token(ident)
    with pytest.raises(InvalidRequest, match="the id must be 1 to 64"):
        ids.check_token(ident, "the id")
    assert subjects.parse_key(f"{ident}.c1") is None
    with pytest.raises(InvalidRequest):
        subjects.parse_registry(f"agentbridge.{ident}.registry.list")


@given(text=st.text(max_size=80))
@example(text="agentbridge.default.registry")
@example(text="agentbridge._registry.registry.list")
@example(text="other.default.registry.list")
@example(text="agentbridge.default.registry.list.more")
@example(text="agentbridge.default\n.registry.list")
def test_what_is_no_registry_subject_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        subjects.parse_registry(text)


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("task-done_2", "task-done_2"),
        ("a.b", "a%2Eb"),
        ("a%2Eb", "a%252Eb"),
        ("*", "%2A"),
        (">", "%3E"),
        ("a b\r\n", "a%20b%0D%0A"),
        ("é", "%C3%A9"),
    ],
)
def test_event_name_becomes_one_token(name: str, token: str) -> None:
    assert subjects.event_token(name) == token
    assert subjects.event("t", "c", name) == f"agentbridge.t.event.c.{token}"


@given(one=event_names, other=event_names)
@example(one="a.b", other="a%2Eb")
def test_event_token_is_legal_and_differs_where_names_differ(one: str, other: str) -> None:
    token = subjects.event_token(one)
    assert re.fullmatch(r"[A-Za-z0-9_%-]{1,768}", token)
    assert (token == subjects.event_token(other)) == (one == other)


@pytest.mark.parametrize("name", ["", "x" * 257, "é" * 129, "\ud800"])
def test_event_name_out_of_bounds_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="`event`"):
        subjects.event_token(name)


def test_event_name_at_the_bound_is_accepted() -> None:
    assert subjects.event_token("é" * 128) == "%C3%A9" * 128


@pytest.mark.parametrize("reply", ["_INBOX.a", "_INBOX.agent_x.Ab3-_.7", "_INBOX." + "a" * 249])
def test_inbox_is_a_safe_reply(reply: str) -> None:
    assert subjects.is_safe_reply(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "_INBOX",
        "_INBOX.",
        "_INBOX..a",
        "_INBOX.a.",
        "_INBOX.*",
        "_INBOX.>",
        "_INBOX.a.>",
        "_INBOX.a*",
        "_INBOX.a b",
        "_INBOX.a\r\nPUB x 0",
        "_INBOX.a\x00",
        "_INBOX.é",
        "_INBOXES.a",
        "_inbox.a",
        " _INBOX.a",
        "agentbridge.default.event.c1.paid",
        "agentbridge.default.command.c1",
        "$JS.API.STREAM.DELETE.agentbridge_events",
        "$KV.agentbridge_clients.a",
        "_INBOX." + "a" * 250,
    ],
)
def test_other_reply_subjects_are_not_safe(reply: str) -> None:
    assert not subjects.is_safe_reply(reply)


@given(text=st.text(st.sampled_from("_INBOX.*>$ ab\t\r\nagentbridge"), max_size=30))
def test_whatever_is_safe_lies_below_the_inbox_and_is_literal(text: str) -> None:
    for reply in (text, f"_INBOX.{text}"):
        if subjects.is_safe_reply(reply):
            first, *others = reply.split(".")
            assert first == "_INBOX"
            assert others
            assert all(others)
            assert not re.search(r"[*>\s]", reply)


@pytest.mark.parametrize("text", ["", " ", "a b", "\n", "a\x7f", "é", "x" * 129])
def test_unprintable_or_long_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="`requestId` must be 1 to 128 printable ASCII"):
        ids.check_printable(text, "`requestId`", 128)


@pytest.mark.parametrize("mint", [ids.new_client_id, ids.new_gateway_id, ids.new_request_id])
def test_minted_ids_are_tokens_and_differ(mint: Callable[[], str]) -> None:
    minted = {mint() for _ in range(50)}
    assert len(minted) == 50
    assert all(ids.is_token(ident) for ident in minted)
