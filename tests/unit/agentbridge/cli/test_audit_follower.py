"""Where `agentbridge audit --follow` goes on in the stream, and when it says that records may be missing."""

from agentbridge.cli.audit_follower import FollowerPlace, Stretch
from protocol.runtime.streams.direct_get import StoredMessage
from protocol.runtime.streams.jetstream import StreamInfo, StreamState


def stream(first: int, last: int, created: str = "2026-01-01T00:00:00Z") -> StreamInfo:
    return StreamInfo({}, created, StreamState(last, first))


def messages(*sequences: int) -> list[StoredMessage]:
    return [StoredMessage(sequence, "subject", "2026-01-01T00:00:00Z", b"") for sequence in sequences]


def test_what_is_read_moves_the_place() -> None:
    place = FollowerPlace(stream(1, 5))
    assert place.take(messages(6, 8), stream(1, 9), more=False) == Stretch(
        missed=False, found=messages(6, 8), more=False
    )
    assert place.sequence == 8
    assert place.take([], stream(1, 9), more=False) == Stretch(missed=False, found=[], more=False)
    assert place.sequence == 8


def test_what_the_stream_let_go_unread_is_a_gap_and_what_was_read_is_shown() -> None:
    place = FollowerPlace(stream(1, 5))
    assert place.take(messages(8), stream(8, 8), more=False) == Stretch(missed=True, found=messages(8), more=False)
    assert place.sequence == 8
    assert place.take([], stream(12, 11), more=False).missed
    assert place.sequence == 11


def test_what_others_stored_and_the_stream_let_go_is_no_gap() -> None:
    place = FollowerPlace(stream(1, 5))
    for _ in range(2):  # the first knows what there is, the second that it was read through
        assert not place.take([], stream(1, 50), more=False).missed
    assert not place.take([], stream(51, 60), more=False).missed
    assert place.sequence == 5, "a replica that lagged may still tell what follows it"
    assert not place.take([], stream(51, 60), more=False).missed
    assert place.take([], stream(62, 70), more=False).missed


def test_a_page_of_several_has_not_read_all_that_there_was() -> None:
    place = FollowerPlace(stream(1, 5))
    place.take([], stream(1, 50), more=False)
    place.take(messages(6), stream(1, 50), more=True)
    assert place.take([], stream(20, 50), more=False).missed


def test_all_of_another_stream_is_to_be_read() -> None:
    place, other = FollowerPlace(stream(1, 5)), stream(1, 7, "2026-01-02T00:00:00Z")
    assert place.take(messages(6, 7), other, more=False) == Stretch(missed=True, found=[], more=True)
    assert place.sequence == 0
    assert place.take(messages(1, 7), other, more=False) == Stretch(missed=False, found=messages(1, 7), more=False)


def test_a_stream_that_has_lost_its_end_is_followed_from_what_is_left() -> None:
    place = FollowerPlace(stream(1, 5))
    assert place.take([], stream(1, 3), more=False) == Stretch(missed=True, found=[], more=True)
    assert place.sequence == 3
    assert not place.take(messages(4), stream(1, 4), more=False).missed
