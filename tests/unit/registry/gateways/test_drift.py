"""Whether a registry notices, by digests alone, that it holds something else than a gateway does."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.nats.clients_bucket import record

from protocol import subjects
from protocol.discovery import Client
from protocol.records import EMPTY_CAPABILITIES
from protocol.reports import Digest, EndReason, GatewayPong, Removal
from protocol.runtime.clients.replica import ReplicaEntry
from registry.bucket.gateway_entry import GatewayEntry
from registry.bucket.gateway_records import GatewayRecord, GatewayRecords
from registry.gateways.drift import LEFT_OVER_PONGS, Drift

GATEWAY = "gw-1"


class World:
    """A gateway's truth and the registry's view of it, written independently."""

    def __init__(self) -> None:
        self.gateway_records = GatewayRecords()
        self.drift = Drift()
        self.truth: dict[str, int] = {}
        self.number = 0
        self.reporting = False
        self._entries: dict[str, ReplicaEntry] = {}
        self._revision = 0

    @property
    def holding(self) -> GatewayRecord:
        return self.gateway_records.of(GATEWAY)

    def write(self, client_id: str, revision: int | None, gateway_id: str = GATEWAY) -> None:
        """Have the mirror hear of a record, or with None of its end."""
        self._revision += 1
        client = Client(record(client_id, gateway_id=gateway_id, revision=revision or 0), EMPTY_CAPABILITIES)
        self._hear(
            subjects.client_key("default", client_id), ReplicaEntry(self._revision, client) if revision else None
        )

    def reach(self, number: int | None, *leaving: str) -> None:
        """Have the mirror hear of a report's number and who is leaving, or with None that the gateway was withdrawn."""
        self._revision += 1
        applied = GatewayEntry(number or 0, [Removal("default", each, EndReason.UNREPORTED) for each in leaving])
        entry = None if number is None else ReplicaEntry(self._revision, data=msgspec.json.encode(applied))
        self._hear(subjects.gateway_key(GATEWAY), entry)

    def report(self, **changes: int | None) -> None:
        """Change the gateway and have its report applied."""
        self.change(**changes)
        self.number += 1
        for client_id, revision in changes.items():
            self.write(client_id, revision)
        self.reach(self.number)

    def change(self, **changes: int | None) -> None:
        """Change the gateway alone."""
        for client_id, revision in changes.items():
            if revision is None:
                self.truth.pop(client_id, None)
            else:
                self.truth[client_id] = revision

    def pong(self) -> GatewayPong:
        digest = Digest()
        for client_id, revision in self.truth.items():
            digest.toggle(subjects.client_key("default", client_id), revision)
        return GatewayPong(GATEWAY, self.number, len(self.truth), str(digest), self.reporting)

    def weigh(self) -> bool:
        return self.drift.weigh(self.pong(), self.holding)

    def _hear(self, key: str, entry: ReplicaEntry | None) -> None:
        before = self._entries.pop(key, None)
        if entry:
            self._entries[key] = entry
        self.gateway_records.observe(key, before, entry)


def test_agreement_asks_for_nothing() -> None:
    world = World()
    assert not any(world.weigh() for _ in range(5))
    world.report(a=1, b=1)
    assert not any(world.weigh() for _ in range(5))


@pytest.mark.parametrize("ghost", [("a", None), ("x", 3), ("a", 2)], ids=["missing", "extra", "other revision"])
def test_drift_of_an_idle_gateway_is_noticed_at_the_second_mismatch(ghost: tuple[str, int | None]) -> None:
    world = World()
    world.report(a=1, b=1)
    assert not world.weigh()
    world.write(*ghost)
    assert [world.weigh(), world.weigh()] == [False, True]


def test_drift_of_a_busy_gateway_is_noticed() -> None:
    world = World()
    world.report(a=1)
    world.write("ghost", 1)
    seen = []
    for revision in range(2, 5):
        world.report(a=revision)
        seen.append(world.weigh())
    assert seen == [False, True, True]


def test_report_that_is_half_applied_is_no_drift_while_numbers_advance() -> None:
    world = World()
    for revision in range(1, 20):
        world.report(a=revision)
        world.write("b", revision)  # the next report's first record
        assert not world.weigh()
        world.report(a=revision, b=revision)
        assert not world.weigh()


def test_report_that_a_dead_registry_left_half_applied_is_left_to_its_repeat() -> None:
    world = World()
    world.report(a=1)
    world.reporting = True
    world.write("b", 1)
    assert not any(world.weigh() for _ in range(5))
    world.reach(None)
    world.write("a", None)
    world.write("b", None)
    assert [world.weigh() for _ in range(3)][-1], "a repeat would not follow"


def test_mirror_that_lags_but_moves_is_no_drift() -> None:
    world = World()
    for revision in range(1, 10):
        world.report(a=revision)
        ahead = GatewayPong(GATEWAY, world.number + 5, 1, "of a report that the mirror has not heard of")
        assert not world.drift.weigh(ahead, world.holding)


def test_numbers_that_stand_apart_are_drift() -> None:
    world = World()
    world.report(a=1)
    assert not world.weigh()
    world.reach(None)
    world.write("a", None)
    assert [world.weigh() for _ in range(3)][-1]


def test_sync_begins_the_count_anew() -> None:
    world = World()
    world.report(a=1)
    world.write("ghost", 1)
    while not world.weigh():
        pass
    world.drift.reset()
    world.write("ghost", None)
    assert not any(world.weigh() for _ in range(3))


def test_departure_that_nobody_gets_on_with_asks_for_a_sync_now_and_then() -> None:
    world = World()
    world.report(a=1)
    world.reach(1, "gone")
    assert not any(world.weigh() for _ in range(LEFT_OVER_PONGS))
    assert world.weigh()
    world.drift.reset()
    assert [world.weigh() for _ in range(LEFT_OVER_PONGS)] == [False] * (LEFT_OVER_PONGS - 1) + [True]
    world.reach(1)
    assert not any(world.weigh() for _ in range(2 * LEFT_OVER_PONGS))


def test_registry_that_lets_go_of_many_is_not_disturbed() -> None:
    world = World()
    world.report(a=1)
    for batch in range(9):
        world.reach(1, f"gone-{batch}")
        assert not any(world.weigh() for _ in range(LEFT_OVER_PONGS))


def test_gateway_whose_clients_are_leaving_is_not_forgotten() -> None:
    world = World()
    world.reach(0, "gone")
    assert world.gateway_records.gateways() == [GATEWAY]
    world.reach(None)
    assert world.gateway_records.gateways() == []


def test_client_that_moves_belongs_to_its_new_gateway_alone() -> None:
    world = World()
    world.report(a=1)
    world.write("a", 2, "gw-2")
    assert (world.holding.keys, world.gateway_records.of("gw-2").keys) == ({}, {"default.a": 2})


def test_gateway_of_which_nothing_is_held_is_forgotten() -> None:
    world = World()
    world.report(a=1)
    assert world.gateway_records.gateways() == [GATEWAY]
    world.write("a", None)
    world.reach(None)
    assert world.gateway_records.gateways() == []


_changes = st.dictionaries(st.sampled_from("abcd"), st.none() | st.integers(1, 9), min_size=1)


@given(st.lists(_changes, max_size=20), st.booleans())
def test_after_any_history_drift_is_found_exactly_where_there_is_some(
    history: list[dict[str, int | None]], ghost: bool
) -> None:
    world = World()
    for changes in history:
        world.report(**changes)
        assert not world.weigh()
    if ghost:
        world.write("ghost", 1)
    assert any(world.weigh() for _ in range(4)) == ghost
