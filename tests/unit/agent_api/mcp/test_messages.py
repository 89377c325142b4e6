"""Messages of JSON-RPC: which are none, and how much memory one may take."""

import json
import tracemalloc
from typing import Any

import pytest

from agent_api.mcp.messages import MAX_PARSED_BYTES, PARSED_FACTOR, RpcMessage, read_message
from protocol import codec
from protocol.errors import InvalidRequest, PayloadTooLarge

# The forms of JSON that grow most when they become Python objects.
FORMS = ["[],", "{},", '{"":0},', '{"":{}},', '{"":' * 60 + "{}" + "}" * 60 + ",", "[" * 60 + "]" * 60 + ",", '"ab",']


def message(**fields: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **fields}).encode()


def call(arguments: str, **params: Any) -> bytes:
    told = json.dumps({"name": "add", **params})[:-1]
    return f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{told},"arguments":{arguments}}}}}'.encode()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"id": 1},
        {"params": {}},
        {"result": {}},
        {"jsonrpc": "1.0", "method": "ping"},
        {"id": None, "method": "ping"},
        {"id": 1.5, "method": "ping"},
        {"id": "x" * 129, "method": "ping"},
        {"method": "ping", "params": []},
    ],
)
def test_what_is_no_message_is_refused(fields: Any) -> None:
    with pytest.raises(InvalidRequest):
        read_message(message(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"id": 1, "method": "ping"},
        {"method": "notifications/initialized"},
        {"id": 1, "result": None},
        {"id": None, "error": {"code": -32700, "message": "no"}},
    ],
)
def test_request_notification_and_response_are_messages(fields: Any) -> None:
    assert read_message(message(**fields)).is_request == ("method" in fields and "id" in fields)


def test_arguments_of_a_call_stay_json() -> None:
    found = read_message(call('{"a": [1.50, {}]}', _meta={"progressToken": 1}))
    assert bytes(memoryview(found.arguments)) == b'{"a": [1.50, {}]}'
    assert found.params == {"name": "add", "_meta": {"progressToken": 1}}


@pytest.mark.parametrize("arguments", ["[]", "3", "null"])
def test_arguments_that_are_no_object_are_left_to_the_library(arguments: str) -> None:
    found = read_message(call(arguments))
    assert found == RpcMessage(
        "tools/call", 1, {"name": "add", "arguments": json.loads(arguments)}, codec.EMPTY_OBJECT, found.parsed_bytes
    )


def memory_of(data: bytes) -> tuple[RpcMessage, int]:
    """Return a message and the bytes that it holds besides those of its body."""
    tracemalloc.start()
    try:
        found = read_message(data)
        return found, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", FORMS)
def test_message_takes_no_more_memory_than_is_counted(form: str) -> None:
    values = f"[{form * (60_000 // len(form))}0]"
    found, held = memory_of(f'{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"_meta":{values}}}}}'.encode())
    assert len(values) <= found.parsed_bytes < MAX_PARSED_BYTES
    assert held < PARSED_FACTOR * found.parsed_bytes
    _, held = memory_of(call(f'{{"a":{values}}}'))
    assert held < 10_000


def test_params_besides_arguments_are_bounded() -> None:
    read_message(call(json.dumps({"a": "x" * 500_000})))
    with pytest.raises(PayloadTooLarge):
        read_message(call("{}", _meta={"x": "x" * MAX_PARSED_BYTES}))
