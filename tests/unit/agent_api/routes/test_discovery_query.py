from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_api.routes.discovery_query import next_link, read_query, refuse_query
from protocol.discovery import Query
from protocol.errors import InvalidRequest

ALL = [
    ("clientId", "c1"),
    ("name", "add"),
    ("user", "ann"),
    ("app", "todo"),
    ("tags", "a,b c"),
    ("componentType", "form"),
    ("authLevel", "user"),
    ("path", "/cart"),
    ("limit", "5"),
    ("after", "c0"),
    ("metadata.room", "a b"),
    ("metadata.x.y", ""),
]


def test_every_parameter_is_read() -> None:
    assert read_query(ALL) == Query(
        client_id="c1",
        name="add",
        user="ann",
        app="todo",
        tags=("a", "b c"),
        component_type="form",
        auth_level="user",
        path="/cart",
        metadata={"room": "a b", "x.y": ""},
        limit=5,
        after="c0",
    )


def test_no_parameter_selects_all() -> None:
    assert read_query([]) == Query()


def test_link_asks_for_the_same_after_the_last() -> None:
    link = next_link("/api/clients", read_query(ALL), "c9")
    path, _, query = link.removeprefix("<").removesuffix('>; rel="next"').partition("?")
    assert path == "/api/clients"
    assert dict(parse_qsl(query, keep_blank_values=True)) == {**dict(ALL), "after": "c9"}


def test_route_without_parameters_refuses_them() -> None:
    refuse_query([])
    with pytest.raises(InvalidRequest, match="limit"):
        refuse_query([("limit", "1")])


@given(st.lists(st.tuples(st.sampled_from([name for name, _ in ALL]) | st.text(max_size=20), st.text(max_size=20))))
def test_any_parameters_give_a_query_or_a_refusal_of_ours(parameters: list[tuple[str, str]]) -> None:
    try:
        query = read_query(parameters)
    except InvalidRequest:
        return
    assert next_link("/api/clients", query, "c1").isascii()
