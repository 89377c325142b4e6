"""What a slow reader has not been told: bounded whatever comes, and the newest never forgotten."""

from hypothesis import given
from hypothesis import strategies as st

from agent_api.commands.progress_buffer import ProgressBuffer

MAX_COUNT, MAX_BYTES = 4, 100
puts = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 150)))


@given(puts)
def test_so_much_is_held_and_no_more_and_the_newest_at_all_events(values: list[tuple[int, int]]) -> None:
    held: ProgressBuffer[int, tuple[int, int]] = ProgressBuffer(MAX_COUNT, MAX_BYTES)
    everything: dict[int, int] = {}
    for key, size in values:
        held.put(key, (key, size), size)
        everything.pop(key, None)
        everything[key] = size
    left = held.take(lambda key: True)
    assert left == [*everything.items()][len(everything) - len(left) :]
    assert len(left) <= MAX_COUNT
    assert len(left) >= min(1, len(everything))
    assert len(left) <= 1 or sum(size for _, size in left) <= MAX_BYTES
    if len(values) <= MAX_COUNT and sum(size for _, size in values) <= MAX_BYTES:
        assert len(left) == len(everything)
    assert len(held) == 0
    part = MAX_BYTES // MAX_COUNT
    for key in range(MAX_COUNT):
        held.put(key, (key, part), part)
    assert len(held) == MAX_COUNT, "all room is free again"
    held.put(0, (0, part + 1), part + 1)
    assert len(held) == MAX_COUNT - 1, "and no more than that"
