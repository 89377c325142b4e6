"""Outcomes of ended commands: forgotten by age and by size."""

from gateway.sessions.recent_outcomes import RecentOutcomes

A, B, C = ("client", "agent", "a"), ("client", "agent", "b"), ("client", "agent", "c")


def test_outcome_is_kept_for_its_time() -> None:
    outcomes = RecentOutcomes(keep_seconds=30)
    outcomes.put(A, b"done", 0)
    assert outcomes.get(A, 30) == b"done"
    assert outcomes.get(A, 30.1) is None
    assert outcomes.get(("client", "another", "a"), 0) is None


def test_old_outcomes_are_forgotten() -> None:
    outcomes = RecentOutcomes(keep_seconds=30)
    outcomes.put(A, b"done", 0)
    outcomes.put(B, b"done", 20)
    outcomes.expire(31)
    assert (outcomes.get(A, 0), outcomes.get(B, 31)) == (None, b"done")


def test_oldest_outcomes_are_forgotten_when_there_is_too_much() -> None:
    outcomes = RecentOutcomes(max_bytes=10)
    for key in (A, B, C):
        outcomes.put(key, b"12345", 0)
    assert [outcomes.get(key, 0) for key in (A, B, C)] == [None, b"12345", b"12345"]


def test_later_outcome_takes_the_place_and_the_age_of_the_former() -> None:
    outcomes = RecentOutcomes(keep_seconds=30, max_bytes=10)
    outcomes.put(A, b"1234567890", 0)
    outcomes.put(A, b"again", 20)
    outcomes.put(B, b"other", 20)  # the former one takes no room any more
    assert (outcomes.get(A, 50), outcomes.get(B, 50)) == (b"again", b"other")


def test_outcome_larger_than_all_room_is_not_kept() -> None:
    outcomes = RecentOutcomes(max_bytes=3)
    outcomes.put(A, b"12345", 0)
    outcomes.put(B, b"123", 0)
    assert (outcomes.get(A, 0), outcomes.get(B, 0)) == (None, b"123")
