"""What a stream has stored of what was sent to it: every message is stored, missing or waiting, never two of these."""

import json

from hypothesis import given
from hypothesis import strategies as st

from protocol.runtime.acknowledgements import STORE_TIMEOUT_SECONDS, Acknowledgements

STREAM = "agentbridge_audit"


def ack(sequence: int, stream: str = STREAM) -> bytes:
    return json.dumps({"stream": stream, "seq": sequence}).encode()


def known(**sent: int) -> Acknowledgements:
    """Return groups of these sizes, sent at 0 to these replies."""
    acknowledgements = Acknowledgements(STREAM)
    for reply, messages in sent.items():
        acknowledgements.sent(reply, messages, 0)
    return acknowledgements


def test_groups_are_stored_when_they_are_acknowledged() -> None:
    acknowledgements = known(a=3, b=1)
    assert (acknowledgements.stored, acknowledgements.waiting) == (0, 4)
    assert acknowledgements.answered("a", ack(13)) == 0
    assert acknowledgements.answered("b", ack(20)) == 0  # others' messages stand in between
    assert (acknowledgements.stored, acknowledgements.waiting) == (4, 0)


def test_anything_but_our_streams_word_means_that_the_group_is_missing() -> None:
    refused = json.dumps({"stream": STREAM, "seq": 0, "error": {"code": 503}}).encode()
    for data in (
        b"",
        b"{",
        b"7",
        b"null",
        refused,
        ack(5, "stray"),
        b'{"error":{"code":400},"stream":"agentbridge_audit"}',
    ):
        acknowledgements = known(a=2)
        assert acknowledgements.answered("a", data) == 2
        assert (acknowledgements.stored, acknowledgements.waiting) == (0, 0)


def test_what_the_sequences_leave_no_room_for_is_missing() -> None:
    acknowledgements = known(a=4, b=4, c=4, d=4)
    acknowledgements.answered("a", ack(104))
    assert acknowledgements.answered("b", ack(106)) == 2
    assert acknowledgements.answered("c", ack(110)) == 0
    assert acknowledgements.answered("d", ack(3)) == 1  # the stream was made anew
    assert acknowledgements.stored == 4 + 2 + 4 + 3


def test_what_is_not_acknowledged_in_time_is_given_up_once() -> None:
    acknowledgements = known(a=2)
    acknowledgements.sent("b", 3, 1)
    assert acknowledgements.give_up(STORE_TIMEOUT_SECONDS - 0.1) == 0
    assert acknowledgements.give_up(STORE_TIMEOUT_SECONDS) == 2
    assert acknowledgements.answered("a", ack(1)) == 0
    assert acknowledgements.answered("b", ack(9)) == 0
    assert acknowledgements.answered("b", ack(9)) == 0
    assert (acknowledgements.stored, acknowledgements.waiting) == (3, 0)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("sent"), st.integers(1, 16)),
            st.tuples(st.just("answered"), st.integers(0, 20), st.one_of(st.integers(1, 500).map(ack), st.just(b""))),
            st.tuples(st.just("wait"), st.floats(0, 10)),
        ),
        max_size=60,
    )
)
def test_every_message_is_stored_missing_or_waiting(steps: list[tuple[object, ...]]) -> None:
    acknowledgements, sent, missing, now = Acknowledgements(STREAM), 0, 0, 0.0
    groups = 0
    for step in steps:
        match step:
            case ("sent", int(messages)):
                acknowledgements.sent(str(groups), messages, now)
                groups += 1
                sent += messages
            case ("answered", int(group), bytes(data)):
                missing += acknowledgements.answered(str(group), data)
            case ("wait", float(seconds)):
                now += seconds
                missing += acknowledgements.give_up(now)
        assert acknowledgements.stored + acknowledgements.waiting + missing == sent
        assert acknowledgements.waiting >= 0
    missing += acknowledgements.give_up(now + STORE_TIMEOUT_SECONDS)
    assert acknowledgements.waiting == 0
