"""What a process says of streams that do not take its messages: which, why, the cure, and for how long."""

import logging

import pytest

from protocol.runtime.store_faults import (
    CREDIBLE_AFTER_SECONDS,
    FORGOTTEN_AFTER_SECONDS,
    JETSTREAM,
    MAX_TOLD,
    StoreFaults,
)

NO_RESOURCES, STORE_FAILED = 10023, 10077


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def faults(clock: Clock) -> StoreFaults:
    return StoreFaults(clock)


def test_refusal_names_the_stream_and_the_cure_until_the_stream_takes_a_message(faults: StoreFaults) -> None:
    faults.refused("s", NO_RESOURCES, "insufficient resources")
    (sentence,) = faults.sentences()
    assert sentence == (
        "the stream s refuses messages (insufficient resources); NATS has no storage left: free space on its disk, "
        "or raise max_file_store in its jetstream settings"
    )
    assert faults.counters() == {"storeWritesRefused": 1, "storesRefusing": 1}
    faults.took("other")
    assert faults.sentences()
    faults.took("s")
    assert faults.sentences() == []
    assert faults.counters() == {"storeWritesRefused": 1, "storesRefusing": 0}


def test_full_stream_is_cured_by_its_own_limits(faults: StoreFaults) -> None:
    faults.refused("s", STORE_FAILED, "maximum bytes exceeded")
    assert faults.sentences() == [
        "the stream s refuses messages (maximum bytes exceeded); raise its limits: nats stream edit s"
    ]


def test_refusal_without_another_is_forgotten(faults: StoreFaults, clock: Clock) -> None:
    faults.refused("s", 1, "?")
    clock.now += FORGOTTEN_AFTER_SECONDS
    assert faults.sentences()
    clock.now += 0.1
    assert (faults.sentences(), faults.counters()["storesRefusing"]) == ([], 0)


def test_silence_counts_twice_in_a_row_and_only_while_nats_is_surely_there(faults: StoreFaults) -> None:
    faults.silent("s", CREDIBLE_AFTER_SECONDS - 0.1)
    faults.silent("s", CREDIBLE_AFTER_SECONDS)
    faults.took("s")
    faults.silent("s", CREDIBLE_AFTER_SECONDS)
    assert faults.sentences() == []
    faults.silent("s", CREDIBLE_AFTER_SECONDS)
    (sentence,) = faults.sentences()
    assert sentence.startswith("the stream s takes no messages, though NATS answers")
    assert "restart nats-server" in sentence


def test_jetstream_as_a_whole_may_be_away(faults: StoreFaults) -> None:
    faults.not_ready("it is not enabled")
    assert "JetStream is not available (it is not enabled)" in faults.sentences()[0]
    faults.took(JETSTREAM)
    assert faults.sentences() == []


def test_refusal_of_one_message_is_no_fault_of_the_stream(faults: StoreFaults) -> None:
    faults.refused_one("s", "message size exceeds maximum allowed")
    assert faults.sentences() == []
    assert faults.counters() == {"storeWritesRefused": 1, "storesRefusing": 0}


def test_no_more_than_twenty_are_told(faults: StoreFaults) -> None:
    for number in range(MAX_TOLD + 5):
        faults.refused(f"s{number}", 1, "?")
    assert len(faults.sentences()) == MAX_TOLD + 1
    assert faults.sentences()[-1] == "5 more streams refuse messages"


def test_many_refusals_are_few_lines(faults: StoreFaults, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(1000):
        faults.refused("s", 1, "?")
        clock.now += 0.01
    faults.took("s")
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "INFO"]
    assert caplog.messages[-1] == "the stream s takes messages again"
