"""Names of fields: which are nearly one of ours, and which are another's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.field_names import near_miss
from protocol.messages import CommandRequest

FIELDS = ("op", *CommandRequest.__struct_encode_fields__)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("Target", "target"),
        ("traget", "target"),
        ("targt", "target"),
        ("tragte", "target"),
        ("request_id", "requestId"),
        ("request-id", "requestId"),
        ("REQUEST_ID", "requestId"),
        ("timeout", "timeoutMs"),
        ("timeoutMS", "timeoutMs"),
        ("idempotency_key", "idempotencyKey"),
        ("parameter", "parameters"),
        ("argument", "parameters"),
        ("Params", "parameters"),
        ("inputs", "parameters"),
        ("op_", "op"),
    ],
)
def test_near_miss_names_the_field(name: str, field: str) -> None:
    assert near_miss(name, FIELDS) == field


@pytest.mark.parametrize(
    "name",
    ["id", "v", "ts", "at", "new", "check", "approvalId", "traceparent", "baggage", "clientId", "agent", "x" * 100_000],
)
def test_name_of_another_thing_is_none(name: str) -> None:
    assert near_miss(name, FIELDS) is None


@given(st.sampled_from(FIELDS))
def test_field_is_nearest_to_itself(field: str) -> None:
    assert near_miss(field, FIELDS) == field


@given(st.sampled_from(FIELDS[1:]), st.data())
def test_field_with_a_fault_or_two_is_near(field: str, data: st.DataObject) -> None:
    """Whatever is swapped, left out, put in or replaced: once, or at two places apart in a longer name.

    Apart, because a fault within two swapped letters is a third one to the distance that is used.
    """
    name, last = field, len(field) - 2
    for _ in range(data.draw(st.integers(1, 2 if len(field) > 6 else 1))):
        if last < 0:
            break
        at = data.draw(st.integers(0, last))
        last = at - 3
        letter = data.draw(st.sampled_from("abcxyzABC"))
        name = data.draw(
            st.sampled_from(
                [
                    name[:at] + name[at + 1] + name[at] + name[at + 2 :],
                    name[:at] + name[at + 1 :],
                    name[:at] + letter + name[at:],
                    name[:at] + letter + name[at + 1 :],
                ]
            )
        )
    assert near_miss(name, FIELDS) is not None
