"""What a registry leaves in a gateway's own key for those who come after it."""

from protocol import codec
from protocol.reports import EndReason, Removal
from registry.bucket.gateway_entry import MAX_LEAVING_BYTES, GatewayEntry, departures, read_gateway_entry


def removals(count: int, user: str) -> list[Removal]:
    return [Removal("t", f"c{number}", EndReason.GATEWAY_LOST, user, "todo", 1) for number in range(count)]


def test_departures_with_long_names_are_split_to_fit_into_one_value_each() -> None:
    leaving = removals(500, user="u" * 8000)
    batches = list(departures(leaving))
    assert [removal for batch in batches for removal in batch] == leaving
    assert max(len(codec.encode(batch)) for batch in batches) < MAX_LEAVING_BYTES * 1.01
    assert len(batches) == 16


def test_few_departures_are_one_batch_and_none_are_none() -> None:
    assert list(departures(removals(500, user="u"))) == [removals(500, user="u")]
    assert list(departures([])) == []


def test_one_departure_that_is_too_large_is_told_all_the_same() -> None:
    huge = removals(2, user="u" * MAX_LEAVING_BYTES)
    assert list(departures(huge)) == [huge[:1], huge[1:]]


def test_what_was_written_before_there_were_departures_can_be_read() -> None:
    assert read_gateway_entry(b'{"number": 7}') == GatewayEntry(7)
    assert codec.encode(GatewayEntry(7)) == b'{"number":7}'
    assert read_gateway_entry(b"no JSON") == read_gateway_entry(None) == GatewayEntry(0)
