import msgspec
import pytest
from support.known import Known, client

from agent_api.finding import MAX_CANDIDATES, clients_of, only_client, visible_client
from protocol.access import AGENT, Principal
from protocol.errors import AmbiguousClient, ClientNotFound, Unavailable, UnknownCapability

ANYBODY = Principal("agent", AGENT, "default", float("inf"))


def test_only_client_is_found() -> None:
    assert only_client(["c1"], "list", "add") == "c1"


def test_candidates_are_named_up_to_a_bound() -> None:
    found = [f"c{number:03}" for number in reversed(range(MAX_CANDIDATES + 50))]
    with pytest.raises(AmbiguousClient) as refusal:
        only_client(found, "list", "add")
    assert refusal.value.details["clients"] == [f"c{number:03}" for number in range(MAX_CANDIDATES)]
    assert refusal.value.details["total"] == MAX_CANDIDATES + 50


def test_nobody_who_offers_it_is_told_with_the_target_and_the_action() -> None:
    with pytest.raises(UnknownCapability, match="`list` with the action `fly`"):
        only_client([], "list", "fly")


def test_before_the_first_list_nothing_is_said() -> None:
    with pytest.raises(Unavailable):
        clients_of(Known(filled=False), ANYBODY)


def test_client_that_may_not_be_seen_does_not_exist() -> None:
    known = Known(client("c1", user="ann"))
    assert visible_client(known, ANYBODY, "c1").record.client_id == "c1"
    bobs = msgspec.structs.replace(ANYBODY, users=frozenset({"bob"}))
    acme = msgspec.structs.replace(ANYBODY, tenant="acme")
    for principal, client_id in ((bobs, "c1"), (acme, "c1"), (ANYBODY, "c2")):
        with pytest.raises(ClientNotFound):
            visible_client(known, principal, client_id)
