import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_api.commands.orders import AnyOf, CommandBody, Order, Scatter, read_order, write_result
from agent_api.openapi.schemas import SCHEMAS
from protocol.discovery import Query
from protocol.errors import InvalidRequest
from protocol.messages import CommandFields, CommandRequest, CommandResponse

DEFAULT_MS, MAX_MS = 30_000, 300_000


def read(body: object) -> Order:
    return read_order(json.dumps(body).encode(), DEFAULT_MS, MAX_MS)


def test_whole_body_is_read() -> None:
    command = {
        "target": "list",
        "action": "add",
        "parameters": {"title": "milk"},
        "requestId": "r-1",
        "timeoutMs": 700,
        "idempotencyKey": "k",
        "sentAt": 5,
    }
    assert read({"clientId": "c1", "command": command}) == Order(
        "c1",
        CommandRequest(
            target="list",
            action="add",
            parameters=msgspec.Raw(b'{"title": "milk"}'),
            request_id="r-1",
            caller_request_id="r-1",
            timeout_ms=700,
            idempotency_key="k",
            sent_at=5,
        ),
    )


def test_small_body_gets_a_request_id_and_the_default_timeout() -> None:
    order = read({"command": {"target": "f"}})
    assert order.client_id is None
    assert order.command.timeout_ms == DEFAULT_MS
    assert order.command.parameters == msgspec.Raw(b"{}")
    assert order.request_id != read({"command": {"target": "f"}}).request_id


@pytest.mark.parametrize(
    ("more", "any_of"),
    [
        ({}, AnyOf()),
        ({"acrossUsers": True}, AnyOf(Query(), across_users=True)),
        ({"match": {"user": "ann", "metadata": {"room": 1}}}, AnyOf(Query(user="ann", metadata={"room": "1"}))),
        ({"match": {"app": "todo"}, "acrossUsers": True}, AnyOf(Query(app="todo"), across_users=True)),
    ],
)
def test_one_of_those_who_fit_may_be_meant(more: dict[str, Any], any_of: AnyOf) -> None:
    order = read({"any": True, **more, "command": {"target": "f"}})
    assert (order.client_id, order.any, order.scatter) == (None, any_of, None)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"client_id": "c1"}, "`client_id`: there is no such field; did you mean `clientId`?"),
        ({"clientID": "c1"}, "`clientID`: there is no such field; did you mean `clientId`?"),
        ({"clientIDs": ["c1"]}, "`clientIDs`: there is no such field; did you mean `clientIds`?"),
        ({"client": "c1"}, "`client`: there is no such field; did you mean `clientId`?"),
        ({"across_users": True}, "`across_users`: there is no such field; did you mean `acrossUsers`?"),
        ({"parameters": {}}, "`parameters`: there is no such field; did you mean `command.parameters`?"),
        ({"user": "ann"}, "`user`: there is no such field; did you mean `match.user`?"),
        ({"match": {"user": None}}, "`match.user`: expected `str`, got `null`"),
        ({"any": True, "match": {"app": None}}, "`match.app`: expected `str`, got `null`"),
        ({"match": {"usr": "ann"}}, "`match.usr`: there is no such field; did you mean `match.user`?"),
        (
            {"command": {"target": "f", "arguments": {}}},
            "`command.arguments`: there is no such field; did you mean `comm",
        ),
        ({"command": {"name": "f"}}, "`command.name`: there is no such field; did you mean `command.target`?"),
        (
            {"command": {"target": "f", "clientId": "c1"}},
            "`command.clientId`: there is no such field; did you mean `cli",
        ),
        (
            {"command": {"target": "f", "timeout": 5}},
            "`command.timeout`: there is no such field; did you mean `command.t",
        ),
        (
            {"command": {"target": "f", "op": "call"}},
            "`command.op`: there is no such field; known are target, action, p",
        ),
        (
            {"zzzzz": 1},
            "`zzzzz`: there is no such field; known are command, clientId, timeoutMs, any, clientIds, match",
        ),
        ({"x" * 5000: 1}, "`" + "x" * 64 + "`: there is no such field; known are"),
        ({"a` - at `$.b": 1}, "`b.a`: there is no such field"),
    ],
)
def test_unknown_field_is_refused_and_the_right_one_named(body: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read({"command": {"target": "f"}} | body)
    assert refusal.value.message.startswith(sentence)


@pytest.mark.parametrize(
    ("whom", "scatter"),
    [
        ({"clientIds": ["c2", "c1"]}, Scatter(("c2", "c1"), Query(), None)),
        ({"clientIds": ["a.b"], "gather": "first"}, Scatter(("a.b",), Query(), 1)),
        ({"match": {}, "gather": "all"}, Scatter(None, Query(), None)),
        ({"match": {}, "gather": 2.0}, Scatter(None, Query(), 2)),
        (
            {"match": {"user": "ann", "app": "todo", "metadata": {"room": "1", "n": 2, "open": True}}, "gather": 3},
            Scatter(None, Query(user="ann", app="todo", metadata={"room": "1", "n": "2", "open": "true"}), 3),
        ),
    ],
)
def test_several_clients_may_be_meant(whom: dict[str, Any], scatter: Scatter) -> None:
    order = read({**whom, "command": {"target": "f"}})
    assert (order.client_id, order.any, order.scatter) == (None, None, scatter)


@pytest.mark.parametrize(
    ("top", "command", "expected"),
    [
        (None, 5, 5),
        (7, 5, 7),
        (7, None, 7),
        (10**30, None, MAX_MS),
        (7.0, 5.0, 7),
        (None, 5.0, 5),
        (1e30, None, MAX_MS),
        (None, MAX_MS + 1, MAX_MS),
        (None, None, DEFAULT_MS),
    ],
)
def test_top_level_timeout_goes_first_and_the_maximum_bounds_it(
    top: float | None, command: float | None, expected: int
) -> None:
    timeout_ms = read({"command": {"target": "f", "timeoutMs": command}, "timeoutMs": top}).command.timeout_ms
    assert (timeout_ms, type(timeout_ms)) == (expected, int)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "command"),
        ({"command": {}}, "target"),
        ({"command": {"target": ""}}, "target"),
        ({"command": {"target": 5}}, "target"),
        ({"command": {"target": "f", "parameters": []}}, "parameters"),
        ({"command": {"target": "f", "parameters": None}}, "parameters"),
        ({"command": {"target": "f", "requestId": "a b"}}, "requestId"),
        ({"command": {"target": "f", "requestId": "x" * 129}}, "requestId"),
        ({"command": {"target": "f", "timeoutMs": 0}}, "timeoutMs"),
        ({"command": {"target": "f"}, "timeoutMs": -1}, "timeoutMs"),
        ({"command": {"target": "f"}, "timeoutMs": True}, "timeoutMs"),
        ({"command": {"target": "f"}, "clientId": 5}, "clientId"),
        ({"command": {"target": "f"}, "any": True, "clientId": "c1"}, "`clientId` and `any`"),
        ({"command": {"target": "f"}, "any": True, "clientIds": ["c1"], "match": {}}, "`any` and `clientIds`:"),
        ({"command": {"target": "f"}, "clientId": "c1", "match": {}}, "`clientId` and `match`:"),
        ({"command": {"target": "f"}, "acrossUsers": True}, "acrossUsers"),
        ({"command": {"target": "f"}, "match": {}, "acrossUsers": True}, "acrossUsers"),
        ({"command": {"target": "f"}, "any": True, "gather": "first"}, "gather"),
        ({"command": {"target": "f"}, "clientIds": []}, "clientIds"),
        ({"command": {"target": "f"}, "clientIds": ["c1", "c2", "c1"]}, "clientIds"),
        ({"command": {"target": "f"}, "clientIds": [str(each) for each in range(317)]}, "clientIds.*317"),
        ({"command": {"target": "f"}, "clientIds": "c1"}, "clientIds"),
        ({"command": {"target": "f"}, "match": {"usr": "ann"}}, "usr"),
        ({"command": {"target": "f"}, "match": {"metadata": {"a": None}}}, "metadata"),
        ({"command": {"target": "f"}, "gather": "first"}, "gather"),
        ({"command": {"target": "f"}, "match": {}, "gather": 0}, "gather"),
        ({"command": {"target": "f"}, "match": {}, "gather": True}, "gather"),
        ({"command": {"target": "f"}, "match": {}, "gather": "most"}, "gather"),
        ({"command": {"target": "f"}, "match": {}, "gather": 1.5}, "gather"),
        ([], "object"),
    ],
)
def test_wrong_body_is_refused_with_the_field_named(body: Any, field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        read(body)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"command": {"target": "f", "parameters": {"a": "\xff"}}}',
        b'{"command": {"target": "f", "parameters": {"a": NaN}}}',
        b'{"command": {"target": "f", "parameters": ' + b"[" * 10_000 + b"]" * 10_000 + b"}}",
        b'{"command": {"op": "cancel", "target": "f", "requestId": "r"}}',
    ],
)
def test_bytes_that_are_no_command_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_order(data, DEFAULT_MS, MAX_MS)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
_field = st.sampled_from(
    [
        *("clientId", "command", "timeoutMs", "any", "clientIds", "match", "gather", "user", "metadata", "acrossUsers"),
        *("target", "action", "parameters", "requestId", "idempotencyKey", "op"),
    ]
)
_bodies = st.dictionaries(_field, _json | st.dictionaries(_field, _json, max_size=6), max_size=5)


@given(st.binary(max_size=200) | _bodies.map(lambda body: json.dumps(body).encode()))
def test_any_bytes_give_an_order_or_a_refusal_of_ours(data: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        order = read_order(data, DEFAULT_MS, MAX_MS)
        assert order.request_id
        assert order.command.timeout_ms is not None
        assert 0 < order.command.timeout_ms <= MAX_MS


def test_result_is_passed_on_to_the_byte() -> None:
    response = CommandResponse(
        request_id="r-1", status="success", result=msgspec.Raw(b'{ "a" : 1.50 }'), client_id="c1", duration_ms=12
    )
    assert write_result(response, "c1") == (
        b'{"success":true,"requestId":"r-1","clientId":"c1","result":{ "a" : 1.50 },"durationMs":12}'
    )


def test_missing_result_is_null() -> None:
    response = CommandResponse(request_id="r-1", status="success", duration_ms=0)
    assert json.loads(write_result(response, "c1"))["result"] is None


def test_documented_body_has_the_fields_that_are_read() -> None:
    body = {field.encode_name for field in msgspec.structs.fields(CommandBody)}
    command = {field.encode_name for field in msgspec.structs.fields(CommandFields)}
    assert set(SCHEMAS["CommandBody"]["properties"]) == body
    assert set(SCHEMAS["Command"]["properties"]) == command
