import asyncio
from typing import Any

import msgspec
import pytest

from agent_api.finding import MAX_CANDIDATES, clients_of, only_client, visible_client
from protocol.access import AGENT, Principal
from protocol.discovery import Client
from protocol.errors import AmbiguousClient, ClientNotFound, Unavailable, UnknownCapability
from protocol.records import ClientRecord, read_capabilities

ANYBODY = Principal("agent", AGENT, "default", float("inf"))
LIST = {"type": "component", "id": "list", "actions": ["add"]}


class Known:
    """A mirror with these clients, all of the default tenant."""

    def __init__(self, *clients: Client, filled: bool = True) -> None:
        self.filled = asyncio.Event()
        self._clients = {client.record.client_id: client for client in clients}
        if filled:
            self.filled.set()

    def clients(self, tenant: str) -> dict[str, Client]:
        return self._clients if tenant == "default" else {}


def client(client_id: str, *capabilities: Any, user: str = "ann") -> Client:
    raw = msgspec.Raw(msgspec.json.encode(capabilities))
    record = ClientRecord(
        client_id=client_id,
        tenant="default",
        gateway_id="gw-1",
        principal=user,
        capabilities=raw,
        revision=1,
        connected_at="2026-01-01T00:00:00.000Z",
    )
    return Client(record, read_capabilities(raw))


def by_id(*clients: Client) -> dict[str, Client]:
    return {each.record.client_id: each for each in clients}


def test_only_client_that_offers_the_action_is_found() -> None:
    clients = by_id(client("c1", LIST), client("c2", {**LIST, "actions": ["remove"]}))
    assert only_client(clients, ANYBODY, "list", "add") == "c1"


def test_candidates_are_named_up_to_a_bound() -> None:
    clients = by_id(*(client(f"c{number:03}", LIST) for number in range(MAX_CANDIDATES + 50)))
    with pytest.raises(AmbiguousClient) as refusal:
        only_client(clients, ANYBODY, "list", "add")
    assert refusal.value.details["clients"] == [f"c{number:03}" for number in range(MAX_CANDIDATES)]
    assert refusal.value.details["total"] == MAX_CANDIDATES + 50


def test_nobody_who_offers_it_is_told_with_the_target_and_the_action() -> None:
    with pytest.raises(UnknownCapability, match="`list` with the action `fly`"):
        only_client(by_id(client("c1", LIST)), ANYBODY, "list", "fly")


def test_invisible_client_is_no_candidate() -> None:
    clients = by_id(client("c1", LIST, user="ann"), client("c2", LIST, user="bob"))
    bobs = msgspec.structs.replace(ANYBODY, users=frozenset({"bob"}))
    assert only_client(clients, bobs, "list", "add") == "c2"


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
