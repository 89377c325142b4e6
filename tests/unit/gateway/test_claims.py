"""Who waits for which command under a key, whatever the order in which requests come and go."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.claims import (
    MAX_CLAIMING,
    MAX_WAITING_PER_AGENT,
    MAX_WAITING_PER_AGENT_AND_CLIENT,
    Claim,
    Claims,
    Stage,
    Waiter,
)
from protocol.access import AGENT, ClientView, Principal
from protocol.audit import asked_by
from protocol.errors import BridgeError, Conflict, Overloaded, PermissionDenied
from protocol.idempotency import Entry
from protocol.messages import CommandRequest, CommandResponse

DONE = CommandResponse(request_id="r", status="success", duration_ms=1)
_numbers = itertools.count()


def waiter(request_id: str = "r1", client_id: str = "c1", **of_principal: Any) -> Waiter:
    caller = Principal(of_principal.pop("sub", "a"), AGENT, "default", float("inf"), **of_principal)
    client = ClientView("default", client_id, "u", "")
    asked = asked_by(caller, CommandRequest(target="f"), with_parameters=False)
    return Waiter(client, caller, request_id, "_INBOX.x", 0.0, 1.0, asked)


def entry(body: str = "b", client_id: str = "c1", **more: Any) -> Entry:
    claim = f"claim-{next(_numbers)}"
    return Entry(
        body=body, claim=claim, gateway_id="gw-1", client_id=client_id, user="u", request_id="r1", at="now", **more
    )


def test_twin_waits_for_the_first_one_s_command() -> None:
    claims = Claims()
    first, twin = waiter("r1"), waiter("r2")
    claim = claims.join("k", entry(), first)
    assert claims.join("k", entry(), twin) is claim
    assert (claim.first, claim.waiters) == (first, [first, twin])
    assert claims.waiting == {first.key: claim, twin.key: claim}


def test_other_body_client_request_id_or_permission_is_refused_and_changes_nothing() -> None:
    claims = Claims()
    claim = claims.join("k", entry(permissions=["todo"]), waiter("r1", permissions=frozenset({"todo"})))
    refused: list[tuple[str, Entry, Waiter, type[BridgeError]]] = [
        ("k", entry("other"), waiter("r2"), Conflict),
        ("k", entry(client_id="c2"), waiter("r2", "c2"), Conflict),
        ("k2", entry(), waiter("r1"), Conflict),
        ("k", entry(), waiter("r2"), PermissionDenied),
    ]
    for key, wanted, who, error in refused:
        with pytest.raises(error):
            claims.join(key, wanted, who)
    assert (list(claims.waiting.values()), len(claim.waiters), len(claims)) == ([claim], 1, 1)


def fill(claims: Claims, client_id: str, count: int, sub: str = "a") -> None:
    for number in range(count):
        key = f"{sub}'s, at {client_id}"
        claims.join(key, entry(client_id=client_id), waiter(f"r{number}", client_id, sub=sub))


def test_too_many_requests_of_an_agent_for_a_client_are_its_own_limit() -> None:
    claims = Claims()
    fill(claims, "c1", MAX_WAITING_PER_AGENT_AND_CLIENT)
    with pytest.raises(Overloaded) as caught:
        fill(claims, "c1", 1)
    assert caught.value.details == {"limit": "agent"}
    fill(claims, "c2", 1)
    fill(claims, "c1", 1, sub="b")


def test_no_agent_takes_up_what_a_gateway_has_room_for() -> None:
    claims = Claims()
    for sub in range(4):
        for client in range(MAX_WAITING_PER_AGENT // MAX_WAITING_PER_AGENT_AND_CLIENT):
            fill(claims, f"c{client}", MAX_WAITING_PER_AGENT_AND_CLIENT, f"a{sub}")
        with pytest.raises(Overloaded) as caught:
            fill(claims, "other", 1, f"a{sub}")
        assert caught.value.details == {"limit": "agent"}
    with pytest.raises(Overloaded, match="at this gateway"):
        fill(claims, "other", 1, "one more")


def test_too_many_claims_at_once_are_overloaded() -> None:
    claims = Claims()
    for number in range(MAX_CLAIMING):
        claims.join(f"k{number}", entry(client_id=f"d{number}"), waiter("r", f"d{number}"))
    with pytest.raises(Overloaded):
        claims.join("more", entry(client_id="e"), waiter("r", "e"))


def test_claim_that_is_running_makes_room_for_others_to_be_claimed() -> None:
    claims = Claims()
    for number in range(2 * MAX_CLAIMING):
        one = waiter("r", f"c{number}")
        claims.begin(claims.join(f"k{number}", entry(client_id=one.client_id), one), one)
    assert len(claims) == 2 * MAX_CLAIMING


def test_closed_claim_keeps_its_waiters_and_lets_others_open_another_one() -> None:
    claims = Claims()
    first, later = waiter("r1"), waiter("r2")
    closed = claims.join("k", entry(), first)
    claims.close(closed)
    claim = claims.join("k", entry(), later)
    assert claim is not closed
    assert claims.waiting == {first.key: closed, later.key: claim}
    assert claims.drop(closed) == [first]
    assert (claims.waiting, len(claims)) == ({later.key: claim}, 1)


_steps = st.lists(
    st.tuples(st.sampled_from(["join", "leave", "begin", "end", "drop"]), st.integers(0, 2), st.integers(0, 4)),
    max_size=60,
)


@given(_steps)
def test_each_request_is_let_go_once_and_nothing_is_left_behind(steps: list[tuple[str, int, int]]) -> None:
    claims, joined, gone = Claims(), list[Waiter](), list[Waiter]()
    known: dict[str, Claim] = {}
    for what, at, who in steps:
        key = f"k{at}"
        claim = known.get(key)
        match what:
            case "join":
                one = waiter(f"r{who}", f"c{at}")
                known[key] = claims.join(key, entry(client_id=f"c{at}"), one)
                joined.append(one)
            case "leave" if claim is not None and claim.waiters:
                gone.append(claim.waiters[who % len(claim.waiters)])
                claims.leave(gone[-1])
            case "begin" if claim is not None and claim.stage is Stage.CLAIMING and claim.waiters:
                claims.begin(claim, claim.waiters[0])
            case "end" if claim is not None and claim.stage is Stage.RUNNING:
                assert claims.end(claim.entry.claim, DONE) is claim
                gone += claims.dismiss(claim)
            case "drop" if claim is not None and claim.stage is not Stage.RUNNING:
                gone += claims.drop(claim)
                assert claims.drop(claim) == []
                del known[key]
    waiting = [each for claim in known.values() for each in claim.waiters]
    assert sorted(map(id, gone + waiting)) == sorted(map(id, joined))
    assert set(claims.waiting) == {each.key for each in waiting}
    assert len(claims) == len(known)
    for claim in known.values():
        claims.dismiss(claim)
    assert (claims.waiting, claims._crowds) == ({}, {})
