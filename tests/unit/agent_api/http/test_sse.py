"""Server-sent events as they travel, and who asks for them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_api.http import sse

EVENTS, JSON = "text/event-stream", "application/json"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (EVENTS, True),
        ("TEXT/Event-Stream", True),
        (f"{EVENTS}; charset=utf-8", True),
        (f"{EVENTS};q=0.5, */*;q=0.1", True),
        (f"{JSON}, {EVENTS}", True),
        (f"{JSON}, {EVENTS};q=0.9", False),
        (f"{JSON};q=0.1, {EVENTS};q=0.9", True),
        (f"{EVENTS};q=0", False),
        (f"{EVENTS};q=a lot", False),
        (f"{EVENTS};q=nan", False),
        (f"{EVENTS};q=1e3", False),
        (f"{EVENTS};q=2", False),
        (f"{EVENTS} ; Q = 0.5", True),
        (f"{EVENTS};q=0.5, */*", False),
        (f"{EVENTS};q=0.5, */*;q=0.8", False),
        (f"{EVENTS};q=0.5, application/*;q=0.8", False),
        (f"{EVENTS};q=0.5, application/*;q=0.4, */*", True),
        (f"{EVENTS};q=0.5, {JSON};q=0.4, application/*", True),
        (f"*/*, {EVENTS}", True),
        (f"text/*, {EVENTS};q=0.1", True),
        (JSON, False),
        ("*/*", False),
        ("text/*", False),
        (f"x{EVENTS}", False),
        ("", False),
        (",,;;=,", False),
    ],
)
def test_events_are_for_those_who_name_them(accept: str, wanted: bool) -> None:
    assert sse.is_wanted(accept.encode()) is wanted


@given(accept=st.binary(max_size=60))
def test_no_header_is_too_odd_to_be_read(accept: bytes) -> None:
    assert sse.is_wanted(accept + b",text/event-stream") or b"q" in accept.lower() or b"json" in accept.lower()


def test_event_has_a_name_and_data() -> None:
    assert sse.block(b"progress", b'{"a":1}') == b'event: progress\ndata: {"a":1}\n\n'


@given(value=st.recursive(st.text() | st.integers() | st.none(), st.lists, max_leaves=5), indent=st.integers(0, 2))
def test_line_breaks_of_an_application_stay_within_its_event(value: object, indent: int) -> None:
    spread = json.dumps(value, indent=indent).replace("\n", "\r\n").encode()
    *lines, nothing, end = sse.block(b"response", spread).split(b"\n")
    assert (lines[0], nothing, end) == (b"event: response", b"", b"")
    assert all(line.startswith(b"data: ") for line in lines[1:])
    assert json.loads(b"\n".join(line.removeprefix(b"data: ") for line in lines[1:])) == value


@given(text=st.text(st.sampled_from("ab\x85\u2028\u2029é\U0001f600\n"), max_size=8))
def test_text_that_looks_like_the_end_of_a_line_forges_no_field(text: str) -> None:
    """Some readers split lines as Python's `str.splitlines` does."""
    forged = f"{text}\nevent: forged\u2028data: forged"
    head, data, end = sse.block(b"response", json.dumps(forged, ensure_ascii=False).encode()).decode().splitlines()
    assert (head, end) == ("event: response", "")
    assert json.loads(data.removeprefix("data: ")) == forged


@given(sizes=st.lists(st.integers(0, 20), max_size=12))
def test_chunks_are_bounded_and_tell_where_blocks_end(sizes: list[int]) -> None:
    blocks = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    ends = {sum(sizes[: number + 1]) for number in range(len(sizes))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "CHUNK_BYTES", 8)
        written = 0
        for data, ends_block in sse.chunks(blocks):
            assert 0 < len(data) <= 8
            assert b"".join(blocks)[written : written + len(data)] == data
            written += len(data)
            assert not ends_block or written in ends
            assert ends_block or written not in ends
    assert written == sum(sizes)
