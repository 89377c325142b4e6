"""The digest by which a gateway and a registry notice that they have drifted apart."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from protocol.reports import Digest

records = st.dictionaries(st.text(min_size=1, max_size=10), st.integers(1, 1000), max_size=20)


def digest(found: dict[str, int]) -> Digest:
    made = Digest()
    for key, revision in found.items():
        made.toggle(key, revision)
    return made


@given(records, st.randoms())
def test_order_does_not_matter(found: dict[str, int], random: Random) -> None:
    shuffled = list(found.items())
    random.shuffle(shuffled)
    assert str(digest(found)) == str(digest(dict(shuffled)))


@given(records, records)
def test_equal_only_for_equal_records(one: dict[str, int], other: dict[str, int]) -> None:
    assert (str(digest(one)) == str(digest(other))) == (one == other)


@given(records)
def test_what_is_taken_out_again_leaves_no_trace(found: dict[str, int]) -> None:
    made = digest(found)
    made.toggle("t.new", 1)
    assert str(made) != str(digest(found))
    made.toggle("t.new", 1)
    assert str(made) == str(digest(found))


def test_nothing_is_sixteen_zeros() -> None:
    assert str(Digest()) == "0" * 16
