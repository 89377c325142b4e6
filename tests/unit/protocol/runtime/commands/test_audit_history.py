"""Finding the newest stretch of a stream that holds something."""

from hypothesis import given
from hypothesis import strategies as st

from protocol.runtime.commands.audit_history import STRETCH, last_stretch

sequences = st.sets(st.integers(1, 100_000), max_size=50)


@given(sequences, st.integers(1, 100_000), st.integers(0, 100_000))
async def test_the_newest_message_is_in_the_stretch_that_is_found(held: set[int], low: int, width: int) -> None:
    high, asked = low + width, 0

    async def first_from(sequence: int) -> int | None:
        nonlocal asked
        asked += 1
        return min((one for one in held if one >= sequence), default=None)

    found = await last_stretch(first_from, low, high) if high > low else None
    inside = [one for one in held if low <= one < high]
    if not inside:
        assert found is None
    else:
        assert found is not None
        start, end = found
        assert low <= start < end <= high
        assert end - start <= STRETCH
        assert start <= max(inside) < end
    assert asked <= 2 * 17 + 4, "neither doubling nor halving takes more steps than that"
