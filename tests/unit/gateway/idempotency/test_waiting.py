"""Who waits for which command under a key, whatever the order in which requests come and go."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.played.sessions import LIMITS

from gateway.idempotency.waiting import (
    MAX_RESERVING,
    MAX_WAITING_PER_AGENT,
    MAX_WAITING_PER_AGENT_AND_CLIENT,
    Reservation,
    Reservations,
    ReservationStage,
    Waiter,
)
from gateway.sessions.core.calls import call_of
from protocol.access import AGENT, ClientView, Principal
from protocol.errors import BridgeError, Conflict, Overloaded, PermissionDenied
from protocol.idempotency import IdempotencyEntry
from protocol.messages import CommandRequest, CommandResponse

DONE = CommandResponse(request_id="r", status="success", duration_ms=1)
_numbers = itertools.count()


def waiter(request_id: str = "r1", client_id: str = "c1", **of_principal: Any) -> Waiter:
    caller = Principal(of_principal.pop("sub", "a"), AGENT, "default", float("inf"), **of_principal)
    client = ClientView("default", client_id, "u", "")
    call = call_of(caller, CommandRequest(target="f", timeout_ms=1000), request_id, "_INBOX.x", LIMITS, 0.0)
    return Waiter(client, caller, call)


def entry(body: str = "b", client_id: str = "c1", **more: Any) -> IdempotencyEntry:
    reservation = f"reservation-{next(_numbers)}"
    return IdempotencyEntry(
        body=body,
        reservation=reservation,
        gateway_id="gw-1",
        client_id=client_id,
        user="u",
        request_id="r1",
        at="now",
        **more,
    )


def test_twin_waits_for_the_first_one_s_command() -> None:
    reservations = Reservations()
    first, twin = waiter("r1"), waiter("r2")
    reservation = reservations.join("k", entry(), first)
    assert reservations.join("k", entry(), twin) is reservation
    assert (reservation.first, reservation.waiters) == (first, [first, twin])
    assert reservations.waiting == {first.key: reservation, twin.key: reservation}


def test_other_body_client_request_id_or_permission_is_refused_and_changes_nothing() -> None:
    reservations = Reservations()
    reservation = reservations.join("k", entry(permissions=["todo"]), waiter("r1", permissions=frozenset({"todo"})))
    refused: list[tuple[str, IdempotencyEntry, Waiter, type[BridgeError]]] = [
        ("k", entry("other"), waiter("r2"), Conflict),
        ("k", entry(client_id="c2"), waiter("r2", "c2"), Conflict),
        ("k2", entry(), waiter("r1"), Conflict),
        ("k", entry(), waiter("r2"), PermissionDenied),
    ]
    for key, wanted, who, error in refused:
        with pytest.raises(error):
            reservations.join(key, wanted, who)
    assert (list(reservations.waiting.values()), len(reservation.waiters), len(reservations)) == ([reservation], 1, 1)


def fill(reservations: Reservations, client_id: str, count: int, sub: str = "a") -> None:
    for number in range(count):
        key = f"{sub}'s, at {client_id}"
        reservations.join(key, entry(client_id=client_id), waiter(f"r{number}", client_id, sub=sub))


def test_too_many_requests_of_an_agent_for_a_client_are_its_own_limit() -> None:
    reservations = Reservations()
    fill(reservations, "c1", MAX_WAITING_PER_AGENT_AND_CLIENT)
    with pytest.raises(Overloaded) as caught:
        fill(reservations, "c1", 1)
    assert caught.value.details == {"limit": "agent"}
    fill(reservations, "c2", 1)
    fill(reservations, "c1", 1, sub="b")


def test_no_agent_takes_up_what_a_gateway_has_room_for() -> None:
    reservations = Reservations()
    for sub in range(4):
        for client in range(MAX_WAITING_PER_AGENT // MAX_WAITING_PER_AGENT_AND_CLIENT):
            fill(reservations, f"c{client}", MAX_WAITING_PER_AGENT_AND_CLIENT, f"a{sub}")
        with pytest.raises(Overloaded) as caught:
            fill(reservations, "other", 1, f"a{sub}")
        assert caught.value.details == {"limit": "agent"}
    with pytest.raises(Overloaded, match="at this gateway"):
        fill(reservations, "other", 1, "one more")


def test_too_many_claims_at_once_are_overloaded() -> None:
    reservations = Reservations()
    for number in range(MAX_RESERVING):
        reservations.join(f"k{number}", entry(client_id=f"d{number}"), waiter("r", f"d{number}"))
    with pytest.raises(Overloaded):
        reservations.join("more", entry(client_id="e"), waiter("r", "e"))


def test_claim_that_is_running_makes_room_for_others_to_be_claimed() -> None:
    reservations = Reservations()
    for number in range(2 * MAX_RESERVING):
        one = waiter("r", f"c{number}")
        reservations.begin(reservations.join(f"k{number}", entry(client_id=one.client_id), one), one)
    assert len(reservations) == 2 * MAX_RESERVING


def test_closed_claim_keeps_its_waiters_and_lets_others_open_another_one() -> None:
    reservations = Reservations()
    first, later = waiter("r1"), waiter("r2")
    closed = reservations.join("k", entry(), first)
    reservations.close(closed)
    reservation = reservations.join("k", entry(), later)
    assert reservation is not closed
    assert reservations.waiting == {first.key: closed, later.key: reservation}
    assert reservations.drop(closed) == [first]
    assert (reservations.waiting, len(reservations)) == ({later.key: reservation}, 1)


_steps = st.lists(
    st.tuples(st.sampled_from(["join", "leave", "begin", "end", "drop"]), st.integers(0, 2), st.integers(0, 4)),
    max_size=60,
)


@given(_steps)
def test_each_request_is_let_go_once_and_nothing_is_left_behind(steps: list[tuple[str, int, int]]) -> None:
    reservations, joined, gone = Reservations(), list[Waiter](), list[Waiter]()
    known: dict[str, Reservation] = {}
    for what, at, who in steps:
        key = f"k{at}"
        reservation = known.get(key)
        match what:
            case "join":
                one = waiter(f"r{who}", f"c{at}")
                known[key] = reservations.join(key, entry(client_id=f"c{at}"), one)
                joined.append(one)
            case "leave" if reservation is not None and reservation.waiters:
                gone.append(reservation.waiters[who % len(reservation.waiters)])
                reservations.leave(gone[-1])
            case "begin" if (
                reservation is not None and reservation.stage is ReservationStage.RESERVING and reservation.waiters
            ):
                reservations.begin(reservation, reservation.waiters[0])
            case "end" if reservation is not None and reservation.stage is ReservationStage.RUNNING:
                assert reservations.end(reservation.entry.reservation, DONE) is reservation
                gone += reservations.dismiss(reservation)
            case "drop" if reservation is not None and reservation.stage is not ReservationStage.RUNNING:
                gone += reservations.drop(reservation)
                assert reservations.drop(reservation) == []
                del known[key]
    waiting = [each for reservation in known.values() for each in reservation.waiters]
    assert sorted(map(id, gone + waiting)) == sorted(map(id, joined))
    assert set(reservations.waiting) == {each.key for each in waiting}
    assert len(reservations) == len(known)
    for reservation in known.values():
        reservations.dismiss(reservation)
    assert reservations.waiting == {}
    for number in range(MAX_WAITING_PER_AGENT_AND_CLIENT):
        reservations.join("new", entry(client_id="c0"), waiter(f"n{number}", "c0"))
    with pytest.raises(Overloaded):  # so the client's waiters were counted right: all are gone, and each only once
        reservations.join("new", entry(client_id="c0"), waiter("n", "c0"))
