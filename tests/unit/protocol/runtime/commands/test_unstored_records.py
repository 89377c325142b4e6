"""Records that no stream has acknowledged: none is forgotten, none is pushed out, and each is sent in its turn."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Overloaded
from protocol.runtime.commands.unstored_records import OVERHEAD_BYTES, SILENCE_SECONDS, UnstoredRecord, UnstoredRecords

FRAME = b"x" * 488  # 1,000 bytes with the overhead


def added(records: UnstoredRecords, number: int, tenant: str = "t", agent: str = "ann") -> UnstoredRecord:
    record = UnstoredRecord(number, str(number), (tenant, agent), 1)
    records.add(record, FRAME)
    return record


def waiting(records: UnstoredRecords, numbers: range, tenant: str = "t") -> list[UnstoredRecord]:
    made = [added(records, number, tenant) for number in numbers]
    for record in made:
        records.wait(record)
    return made


def numbers(due: object) -> list[int]:
    return [record.number for record in due]  # type: ignore[attr-defined]


def test_what_waits_is_sent_in_its_order_tenants_in_turn() -> None:
    records = UnstoredRecords(1_000_000)
    for number, tenant in enumerate("aaabbc"):
        records.wait(added(records, number, tenant))
    assert numbers(records.due()) == [0, 3, 5, 1, 4, 2]
    assert not records.is_due()


def test_a_record_is_kept_until_its_stream_has_it() -> None:
    records = UnstoredRecords(1_000_000)
    record = added(records, 1)
    records.sent(record, 0)
    records.disconnected()
    assert numbers(records.due()) == [1]
    records.sent(record, 1)
    assert records.outcomes == 1
    assert records.stored("1") is record
    assert records.stored("1") is None
    assert (records.outcomes, bool(records)) == (0, False)


def test_a_lost_connection_puts_what_was_under_way_before_what_waits() -> None:
    records = UnstoredRecords(1_000_000)
    for number in (3, 1, 2):
        records.sent(added(records, number), number)
    records.wait(added(records, 4))
    records.disconnected()
    assert numbers(records.due()) == [1, 2, 3, 4]


def test_after_a_refusal_only_the_oldest_is_tried_until_one_is_stored() -> None:
    records = UnstoredRecords(1_000_000)
    for number in range(3):
        records.sent(added(records, number), 0)
        records.refused(str(number))
    records.wait(added(records, 3))
    assert not records.is_due()
    [trial] = records.trials()
    records.sent(trial, 1)
    records.stored(trial.key)
    assert len(numbers(records.due())) == 3


def test_one_tenants_refusals_hold_up_nobody_else() -> None:
    records = UnstoredRecords(1_000_000)
    records.sent(added(records, 1, "refused"), 0)
    records.refused("1")
    records.wait(added(records, 2, "other"))
    assert numbers(records.due()) == [2]


def test_silence_of_five_seconds_is_a_refusal_and_a_late_acknowledgement_counts() -> None:
    records = UnstoredRecords(1_000_000)
    records.sent(added(records, 1, "a"), 0)
    records.sent(added(records, 2, "b"), 1)
    assert records.silent(SILENCE_SECONDS - 0.1) == set()
    assert records.silent(SILENCE_SECONDS) == {"a"}
    assert records.stored("1") is not None
    assert list(records.trials()) == []
    assert records.refused("1") is None, "an answer to an earlier sending changes nothing"


def test_a_store_that_has_just_been_made_gets_everything_again() -> None:
    records = UnstoredRecords(1_000_000)
    for number in range(3):
        records.sent(added(records, number), 0)
    records.refused("0")
    records.sent(added(records, 3, "other"), 0)
    records.try_again("t")
    assert sorted(numbers(records.due())) == [0, 1, 2]


def test_without_room_the_tenant_that_holds_most_gets_none_and_nothing_is_pushed_out() -> None:
    records = UnstoredRecords(100_000)
    loud = 0
    with contextlib.suppress(Overloaded):
        for number in range(100):
            records.wait(added(records, number, "loud"))
            loud += 1
    assert 50 <= loud <= 75
    quiet = waiting(records, range(1000, 1015), "quiet")
    with pytest.raises(Overloaded):
        added(records, 2000, "loud")
    assert records.outcomes == loud + len(quiet)
    assert len(list(records.due())) == loud + len(quiet)


def test_room_is_given_back_and_holders_without_records_are_forgotten() -> None:
    records = UnstoredRecords(2 * (len(FRAME) + OVERHEAD_BYTES))  # a sixteenth of which has room for none
    for number in range(10):
        record = added(records, number, f"tenant-{number}")
        records.sent(record, 0)
        records.stored(record.key)
        records.tidy()
    assert not records


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abc"), st.booleans()),
        st.tuples(st.sampled_from(["stored", "refused", "lost"]), st.integers(0, 40)),
        st.tuples(st.sampled_from(["disconnected", "silent", "due", "trials", "tidy"])),
        st.tuples(st.just("try_again"), st.sampled_from("abc")),
    ),
    max_size=120,
)


@given(STEPS)
def test_every_record_is_stored_lost_or_there(steps: list[tuple[object, ...]]) -> None:
    records, kept, now = UnstoredRecords(30_000), set[str](), 0.0
    for number, step in enumerate(steps):
        now += 1
        match step:
            case ("add", str(tenant), bool(sends)):
                with contextlib.suppress(Overloaded):
                    record = added(records, number, tenant)
                    kept.add(record.key)
                    records.sent(record, now) if sends else records.wait(record)
            case ("stored" | "lost" as end, int(key)):
                gone = records.stored(str(key)) if end == "stored" else records.lost(str(key))
                assert (gone is not None) == (str(key) in kept)
                kept.discard(str(key))
            case ("refused", int(key)):
                records.refused(str(key))
            case ("disconnected",):
                records.disconnected()
            case ("silent",):
                records.silent(now)
            case ("due" | "trials" as which,):
                for record in records.due() if which == "due" else records.trials():
                    records.sent(record, now)
            case ("try_again", str(tenant)):
                records.try_again(tenant)
            case _:
                records.tidy()
        assert records.outcomes == len(kept)
    records.disconnected()
    assert {record.key for record in records.due()} == kept
