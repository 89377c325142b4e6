"""Messages without a good token: how many are looked at, at a client, at all of its tenant, and at the neighbours."""

import pytest

from protocol.runtime.tokens import Standing, TokenOwner
from protocol.runtime.unverified_messages import CLAIM, UnverifiedMessages
from protocol.subjects import ClientAddress

CLIENT = ClientAddress("acme", "c1")
SIBLING = ClientAddress("acme", "c2")
NEIGHBOUR = ClientAddress("globex", "c3")
UNKNOWN = [Standing.BAD, Standing.EXPIRED, Standing.NEW]


def admitted(messages: UnverifiedMessages, standing: Standing, address: ClientAddress, now: float, sent: int) -> int:
    """Send messages at one instant; return how many were looked at, and refused if they are bad."""
    return sum(
        messages.admits(standing, address, now)
        and (standing is not Standing.BAD or messages.admits_refusal(address, now))
        for _ in range(sent)
    )


def test_good_tokens_are_never_counted() -> None:
    messages = UnverifiedMessages()
    admitted(messages, Standing.BAD, CLIENT, 0, 10_000)
    assert admitted(messages, Standing.GOOD, CLIENT, 0, 10_000) == 10_000


@pytest.mark.parametrize("standing", UNKNOWN)
def test_flood_at_a_client_is_bounded_and_counted(standing: Standing) -> None:
    messages = UnverifiedMessages()
    at_once = admitted(messages, standing, CLIENT, 0, 20_000)
    assert 0 < at_once <= 1000
    assert (messages.dropped, messages.last_client) == (20_000 - at_once, "c1")
    assert 0 < admitted(messages, standing, CLIENT, 1, 20_000) <= 500, "a second later"


@pytest.mark.parametrize("standing", UNKNOWN)
def test_flood_of_one_standing_leaves_room_for_the_others(standing: Standing) -> None:
    messages = UnverifiedMessages()
    admitted(messages, standing, CLIENT, 0, 20_000)
    for other in {*UNKNOWN} - {standing}:
        assert admitted(messages, other, CLIENT, 0, 1) == 1


@pytest.mark.parametrize("standing", UNKNOWN)
def test_flood_at_all_clients_of_a_tenant_leaves_other_tenants_alone(standing: Standing) -> None:
    messages = UnverifiedMessages()
    admitted(messages, standing, CLIENT, 0, 20_000)
    assert admitted(messages, standing, SIBLING, 0, 1) == 1, "one client does not use up its tenant's"
    for number in range(100):
        admitted(messages, standing, ClientAddress("acme", f"other-{number}"), 0, 2000)
    assert admitted(messages, standing, ClientAddress("acme", "another"), 0, 1) == 0
    assert admitted(messages, standing, NEIGHBOUR, 0, 1) == 1


def test_new_token_that_is_refused_takes_from_the_bad() -> None:
    messages = UnverifiedMessages()
    refused = sum(messages.admits(Standing.NEW, CLIENT, 0) and messages.admits_refusal(CLIENT, 0) for _ in range(500))
    assert refused == 50
    assert not messages.admits(Standing.BAD, CLIENT, 0)


def claims(messages: UnverifiedMessages, *subs: str, is_known: bool = False) -> int:
    """Send a new token for each `sub` that it names; return how many were looked at."""
    return sum(messages.admits(Standing.NEW, CLIENT, 0, TokenOwner("acme", sub, is_known)) for sub in subs)


def test_forged_tokens_that_name_one_agent_leave_room_for_new_tokens_of_others() -> None:
    messages = UnverifiedMessages()
    assert claims(messages, *["mallory"] * 10_000) == CLAIM.burst
    assert claims(messages, "ann") == 1


def test_forged_tokens_that_name_invented_agents_leave_room_for_fresh_tokens_of_known_ones() -> None:
    messages = UnverifiedMessages()
    claims(messages, *map(str, range(10_000)))
    assert claims(messages, "new") == 0
    assert claims(messages, "known", is_known=True) == 1
