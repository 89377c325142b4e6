"""Clients that were lost a moment ago: who is told of them, for how long, and how much is remembered."""

import random

import msgspec
import pytest
from support.played.known import client

from protocol.access import AGENT, Principal
from protocol.discovery import Query
from protocol.runtime.clients.lost import ENTRY_BYTES, LOST_SECONDS, MAX_EXPIRED, LostClients
from protocol.subjects import ClientAddress

ANYBODY = Principal("agent", AGENT, "default", float("inf"))
ANN = msgspec.structs.replace(ANYBODY, users=frozenset({"ann"}))
C1 = ClientAddress("default", "c1")


def offered(lost: LostClients, target: str = "f", principal: Principal = ANYBODY, now: float = 0.0) -> bool:
    return lost.offered(principal, target, None, Query(), now)


def test_client_is_known_for_thirty_seconds() -> None:
    lost = LostClients()
    lost.add(client("c1", "f"), 100.0)
    for now, known in ((100.0, True), (100.0 + LOST_SECONDS - 0.1, True), (100.0 + LOST_SECONDS, False)):
        assert (lost.knows(ANYBODY, C1, now), offered(lost, now=now)) == (known, known)
    lost.expire(100.0 + LOST_SECONDS)
    assert (len(lost), lost.held_bytes) == (0, 0)


def test_client_that_is_back_is_forgotten() -> None:
    lost = LostClients()
    lost.add(client("c1", "f"), 0.0)
    lost.forget(C1)
    lost.forget(C1)
    assert (lost.knows(ANYBODY, C1, 0.0), offered(lost), lost.held_bytes) == (False, False, 0)


def test_nobody_is_told_of_a_client_that_it_may_not_see() -> None:
    lost = LostClients()
    lost.add(client("c1", "f", user="bob"), 0.0)
    lost.add(client("c2", "f", tenant="acme"), 0.0)
    acme = msgspec.structs.replace(ANYBODY, tenant="acme")
    assert [lost.knows(each, C1, 0.0) for each in (ANYBODY, ANN, acme)] == [True, False, False]
    assert [offered(lost, principal=each) for each in (ANYBODY, ANN, acme)] == [True, False, True]


def test_target_was_offered_with_its_action_to_those_who_may_use_it_and_by_those_that_fit() -> None:
    lost = LostClients()
    lost.add(
        client("c1", {"id": "list", "actions": ["add"]}, {"name": "g", "permissions": ["keys"]}, metadata={"n": 1}), 0
    )
    query = Query(metadata={"n": "1"})
    assert [lost.offered(ANYBODY, "list", action, query, 0.0) for action in ("add", "fly", None)] == [
        True,
        False,
        False,
    ]
    assert not lost.offered(ANYBODY, "list", "add", Query(metadata={"n": "2"}), 0.0)
    holder = msgspec.structs.replace(ANYBODY, permissions=frozenset({"keys"}))
    assert [offered(lost, "g", each) for each in (ANYBODY, holder)] == [False, True]


def test_list_is_charged_once_for_all_who_offer_it_and_kept_while_one_of_them_is_remembered() -> None:
    lost = LostClients()
    one = client("c1", "f")
    lost.add(one, 0.0)
    alone = lost.held_bytes
    lost.add(client("c2", "f"), 0.0)
    assert lost.held_bytes - alone < alone
    lost.forget(C1)
    assert offered(lost)
    lost.forget(ClientAddress("default", "c2"))
    assert (offered(lost), lost.held_bytes) == (False, 0)


def test_one_tenant_does_not_drive_out_another() -> None:
    lost = LostClients(max_bytes=20 * ENTRY_BYTES)
    lost.add(client("c1", "f"), 0.0)
    for number in range(1000):
        lost.add(client(f"x{number}", f"f{number}", tenant="crowd"), 0.0)
    assert (lost.knows(ANYBODY, C1, 0.0), offered(lost)) == (True, True)
    assert lost.held_bytes <= 20 * ENTRY_BYTES
    lost.add(client("c2", "g", tenant="late"), 0.0)
    late = msgspec.structs.replace(ANYBODY, tenant="late")
    assert (lost.knows(late, ClientAddress("late", "c2"), 0.0), offered(lost, "g", late)) == (True, True)


def test_client_without_room_for_its_list_is_known_by_its_id() -> None:
    lost = LostClients(max_bytes=4 * ENTRY_BYTES)
    lost.add(client("c1", {"name": "f", "description": "x" * 5000}), 0.0)
    assert (lost.knows(ANYBODY, C1, 0.0), offered(lost)) == (True, False)


def test_very_many_are_forgotten_some_at_a_time() -> None:
    lost = LostClients()
    for number in range(MAX_EXPIRED + 10):
        lost.add(client(f"c{number}", "f"), 0.0)
    lost.expire(LOST_SECONDS)
    assert (len(lost), offered(lost, now=LOST_SECONDS)) == (10, False)
    lost.expire(LOST_SECONDS)
    assert (len(lost), lost.held_bytes) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_books_are_right_whatever_happens(seed: int) -> None:
    chance = random.Random(seed)
    lost, now = LostClients(max_bytes=chance.choice([3, 9, 30]) * ENTRY_BYTES), 0.0
    for _ in range(400):
        now += chance.choice([0.0, 0.0, 1.0, 20.0])
        tenant, client_id = chance.choice(["a", "b", "default"]), f"c{chance.randrange(12)}"
        if chance.random() < 0.7:
            offers = [f"f{number}" for number in range(chance.randrange(3))]
            lost.add(client(client_id, *offers, tenant=tenant, user=chance.choice(["ann", "bob"])), now)
        else:
            lost.forget(ClientAddress(tenant, client_id))
    lost.expire(now + LOST_SECONDS)
    assert (len(lost), lost.held_bytes) == (0, 0)
