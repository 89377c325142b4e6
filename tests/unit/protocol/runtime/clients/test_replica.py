"""What a mirror holds, whatever the stream says in which order."""

import logging
import weakref

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.nats.clients_bucket import record

from protocol.runtime.clients.mirror import Listing
from protocol.runtime.clients.replica import Replica, ReplicaEntry
from protocol.runtime.streams.consumer import ConsumerPlace, parse_place


def put(replica: Replica, client_id: str, revision: int, tenant: str = "default", capabilities: bytes = b"[]") -> None:
    body = msgspec.json.encode(record(client_id, tenant=tenant, revision=revision, capabilities=capabilities))
    replica.put(f"{tenant}.{client_id}", revision, body)


def held(replica: Replica) -> dict[str, int]:
    return {client_id: client.record.revision for client_id, client in replica.clients("default").items()}


def test_listing_anew_forgets_what_it_does_not_name_only_at_its_end() -> None:
    replica = Replica()
    replica.begin("life", 0)
    put(replica, "a", 1)
    put(replica, "b", 2)
    replica.complete()

    replica.begin("life", 3)
    put(replica, "b", 3)
    assert held(replica) == {"a": 1, "b": 3}
    replica.complete()
    assert held(replica) == {"b": 3}


def test_older_news_of_the_same_life_is_no_news() -> None:
    replica = Replica()
    replica.begin("life", 0)
    put(replica, "a", 5)
    replica.begin("life", 5)
    put(replica, "a", 4)
    replica.complete()
    assert held(replica) == {"a": 5}


@pytest.mark.parametrize(("life", "last"), [("other", 9), ("life", 3)], ids=["another stream", "an older store"])
def test_revisions_of_a_former_life_do_not_count(life: str, last: int) -> None:
    replica = Replica()
    replica.begin("life", 0)
    put(replica, "a", 5)
    replica.begin(life, last)
    put(replica, "a", 1)
    replica.complete()
    assert (held(replica), replica.revision) == ({"a": 1}, 1)


def test_equal_capabilities_are_held_once_and_let_go() -> None:
    replica = Replica()
    replica.begin("life", 0)
    put(replica, "a", 1, capabilities=b'["f"]')
    put(replica, "b", 2, capabilities=b'["f"]')
    a, b = replica.clients("default").values()
    assert a.capabilities is b.capabilities
    assert a.record.capabilities is b.record.capabilities

    kept = weakref.ref(a.capabilities)
    del a, b
    replica.remove("default.a", 3)
    replica.remove("default.b", 4)
    assert kept() is None


def test_tenant_without_clients_is_forgotten() -> None:
    replica = Replica()
    replica.begin("life", 0)
    put(replica, "a", 1, tenant="acme")
    replica.remove("acme.a", 2)
    assert list(replica.tenants()) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"no json", b"[]", b"\xff", b'{"clientId":"a"}', b"[" * 10_000, msgspec.json.encode(record("another"))],
)
def test_record_that_cannot_be_read_is_logged_and_left_out(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    replica = Replica()
    replica.begin("life", 0)
    put(replica, "a", 1)
    with caplog.at_level(logging.WARNING):
        replica.put("default.a", 2, data)
    assert held(replica) == {}
    assert "default.a" in caplog.text


def test_listener_hears_of_our_own_keys_too() -> None:
    heard: list[tuple[str, ReplicaEntry | None, ReplicaEntry | None]] = []
    replica = Replica(lambda *news: heard.append(news))
    replica.begin("life", 0)
    replica.put("_gateway.gw-1", 1, b"57")
    replica.remove("_gateway.gw-1", 2)
    entry = ReplicaEntry(1, data=b"57")
    assert heard == [("_gateway.gw-1", None, entry), ("_gateway.gw-1", entry, None)]


_steps = st.lists(
    st.tuples(st.sampled_from(["put", "remove", "relist", "wipe"]), st.sampled_from("abc"), st.integers(0, 3))
)


@given(_steps)
def test_replica_ends_as_the_bucket_does(steps: list[tuple[str, str, int]]) -> None:
    """A relist loses some messages first: those are what it is there to repair."""
    replica, bucket, revision, life, missed = Replica(), dict[str, int](), 0, 0, 0
    replica.begin("0", 0)
    for step, client_id, lose in [*steps, ("relist", "a", 0)]:
        match step:
            case "relist" | "wipe":
                if step == "wipe":
                    bucket, revision, life = {}, 0, life + 1
                replica.begin(str(life), revision)
                for name, at in sorted(bucket.items(), key=lambda item: item[1]):
                    put(replica, name, at)
                replica.complete()
                missed = lose
            case "put":
                revision += 1
                bucket[client_id] = revision
                if not missed:
                    put(replica, client_id, revision)
            case "remove":
                revision += 1
                bucket.pop(client_id, None)
                if not missed:
                    replica.remove(f"default.{client_id}", revision)
    assert held(replica) == bucket


def test_listing_ends_when_the_snapshot_has_come() -> None:
    listing = Listing()
    deliver(listing, ConsumerPlace(10, 1, 5))
    listing.expect(2)
    assert not listing.complete
    deliver(listing, ConsumerPlace(11, 2, 7))  # writers are busy, but the snapshot's two are here
    assert listing.complete


def test_listing_ends_where_messages_of_the_snapshot_were_replaced_meanwhile() -> None:
    listing = Listing()
    listing.expect(5)
    deliver(listing, ConsumerPlace(10, 1, 0))
    assert listing.complete


def test_empty_listing_ends_at_once() -> None:
    listing = Listing()
    listing.expect(0)
    assert listing.complete


@pytest.mark.parametrize("place", [ConsumerPlace(12, 3, 0), ConsumerPlace(9, 2, 0), ConsumerPlace(10, 1, 0)])
def test_gap_or_step_back_breaks_the_listing(place: ConsumerPlace) -> None:
    listing = Listing()
    deliver(listing, ConsumerPlace(10, 1, 5))
    assert not listing.accept(place)
    assert listing.broken


def test_heartbeat_shows_what_was_lost_at_the_end_and_what_will_not_come() -> None:
    listing = Listing()
    listing.expect(9)
    deliver(listing, ConsumerPlace(10, 1, 5))
    listing.heartbeat(1, idle=False)
    assert (listing.broken, listing.complete) == (None, False)
    listing.heartbeat(1, idle=True)
    assert (listing.broken, listing.complete) == (None, True)
    listing.heartbeat(2, idle=True)
    assert listing.broken


def deliver(listing: Listing, place: ConsumerPlace) -> None:
    assert listing.accept(place)
    listing.advance(place)


@pytest.mark.parametrize(
    "reply",
    ["$JS.ACK.KV_x.c.1.57.3.1700000000000000000.8", "$JS.ACK.hub.acc.KV_x.c.1.57.3.1700000000000000000.8.rnd"],
)
def test_place_is_read_with_and_without_a_domain(reply: str) -> None:
    assert parse_place(reply) == ConsumerPlace(57, 3, 8)
