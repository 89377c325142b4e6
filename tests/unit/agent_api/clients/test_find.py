import msgspec
import pytest
from support.played.known import Known, client

from agent_api.clients.find import MAX_CANDIDATES, ambiguous, clients_of, visible_client
from protocol.access import AGENT, Principal
from protocol.errors import ClientNotFound, Unavailable

ANYBODY = Principal("agent", AGENT, "default", float("inf"))

NOW = 1000.0


def test_candidates_and_their_users_are_named_up_to_a_bound() -> None:
    known = Known(*(client(f"c{number:03}", user=f"u{number % 3}") for number in range(MAX_CANDIDATES + 50)))
    clients = known.clients("default")
    error = ambiguous(clients, sorted(clients, reverse=True), "list", "add")
    assert error.details == {
        "clients": [f"c{number:03}" for number in range(MAX_CANDIDATES)],
        "total": MAX_CANDIDATES + 50,
        "users": ["u0", "u1", "u2"],
    }
    assert error.message.startswith("150 clients of several users offer `list` with the action `add`; name one of them")


def test_clients_of_one_user_are_told_as_such() -> None:
    clients = Known(client("c1"), client("c2")).clients("default")
    assert ambiguous(clients, ["c1", "c2"], "list", None).message.startswith("2 clients of one user offer `list`;")


def test_before_the_first_list_nothing_is_said() -> None:
    with pytest.raises(Unavailable):
        clients_of(Known(filled=False), ANYBODY)


def test_client_that_may_not_be_seen_does_not_exist() -> None:
    known = Known(client("c1", user="ann"))
    assert visible_client(known, ANYBODY, "c1", NOW).record.client_id == "c1"
    bobs = msgspec.structs.replace(ANYBODY, users=frozenset({"bob"}))
    acme = msgspec.structs.replace(ANYBODY, tenant="acme")
    for principal, client_id in ((bobs, "c1"), (acme, "c1"), (ANYBODY, "c2")):
        with pytest.raises(ClientNotFound):
            visible_client(known, principal, client_id, NOW)


def test_client_that_was_lost_a_moment_ago_is_unavailable_to_those_who_may_see_it() -> None:
    known = Known(client("c1", user="ann"))
    known.remove("c1", lost_at=NOW)
    with pytest.raises(Unavailable):
        visible_client(known, ANYBODY, "c1", NOW + 1)
    for principal, now in ((msgspec.structs.replace(ANYBODY, users=frozenset({"bob"})), NOW), (ANYBODY, NOW + 31)):
        with pytest.raises(ClientNotFound):
            visible_client(known, principal, "c1", now)
