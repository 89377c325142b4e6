"""Messages on command subjects."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import messages
from protocol.errors import ClientLost, CommandFailed, ErrorBody, Internal, InvalidRequest
from protocol.messages import CancelRequest, CommandRequest, CommandResponse, ProbeRequest, decode_operation


@pytest.mark.parametrize(
    ("body", "operation"),
    [
        (b'{"target":"add"}', CommandRequest(target="add")),
        (b'{"op":"call","target":"add","new":1}', CommandRequest(target="add")),
        (
            b'{"target":"add","id":1,"v":2,"clientId":"c","traceparent":"t","check":false,"probed":true}',
            CommandRequest(target="add", probed=True),
        ),
        (b'{"target":"add","op":"call"}', CommandRequest(target="add")),
        (b'{"target":"add","parameters":{"op":"cancel"}}', None),
        (b'{"op":"cancel","requestId":"r"}', CancelRequest(request_id="r")),
        (b'{"\\u006fp":"call","target":"add"}', CommandRequest(target="add")),
        (b'{"op":"probe","requestIds":["a","b"]}', ProbeRequest(request_ids=["a", "b"])),
    ],
)
def test_operation_is_decoded_by_its_op(body: bytes, operation: messages.Operation | None) -> None:
    decoded = decode_operation(body)
    if operation is None:
        assert isinstance(decoded, CommandRequest)
    else:
        assert decoded == operation


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"op":"call"}', "object missing required field `target`"),
        (b'{"op":"resume","target":"add"}', "`op`: must be call, cancel or probe"),
        (b'{"op":null,"target":"add"}', "`op`: must be call, cancel or probe"),
        (b'{"op":["call"],"target":"add"}', "`op`: must be call, cancel or probe"),
        (b'{"op":{"call":1},"target":"add"}', "`op`: must be call, cancel or probe"),
        (b'{"\\u006fp":"cancel","requestId":"r"}', "`op`: invalid value 'cancel'"),
        (b'{"\\u006fp":7,"target":"add"}', "`op`: expected `str`"),
        (b'{"op":"cancel"}', "object missing required field `requestId`"),
        (b'{"op":"cancel","requestId":"a b"}', "`requestId` must be 1 to 128 printable ASCII"),
        (b'{"op":"probe"}', "object missing required field `requestIds`"),
        (b'{"op":"probe","requestIds":"a"}', "`requestIds`: expected `array`, got `str`"),
        (b'{"target":"a","requestId":""}', "`requestId` must be 1 to 128 printable ASCII"),
        (b'{"target":"a","requestId":"\\n"}', "`requestId` must be 1 to 128 printable ASCII"),
        (b'{"target":"a","parameters":[1]}', "`parameters`: expected `object`"),
        (b'{"target":"a","parameters":"{}"}', "`parameters`: expected `object`"),
        (b'{"target":"a","parameters":null}', "`parameters`: expected `object`"),
        (b'{"target":"a","timeoutMs":0}', "`timeoutMs`: must be greater than 0"),
        (b'{"target":"a","timeoutMs":-5}', "`timeoutMs`: must be greater than 0"),
        (b'{"target":"a","sentAt":-1}', "`sentAt`: must be from 0 to 253402300799999"),
        (b'{"target":"a","sentAt":' + b"9" * 400 + b"}", "`sentAt`: must be from 0 to 253402300799999"),
        (b'{"target":"a","sentAt":1e300}', "`sentAt`: must be from 0 to 253402300799999"),
        (b'{"target":"a","sentAt":1.5}', "`sentAt`: must be a whole number"),
        (b'{"target":"a","timeoutMs":1500.5}', "`timeoutMs`: must be a whole number"),
        (b'{"target":"a","timeoutMs":1e400}', "`timeoutMs`: number out of range"),
        (b'{"target":"a","timeoutMs":"1500"}', "`timeoutMs`: expected `int | float | null`, got `str`"),
        (b'{"target":"a","timeoutMs":true}', "`timeoutMs`: expected `int | float | null`, got `bool`"),
        (b'{"target":"a","timeout_ms":5}', "`timeout_ms`: there is no such field; did you mean `timeoutMs`?"),
        (b'{"target":"a","TIMEOUTMS":5}', "`TIMEOUTMS`: there is no such field; did you mean `timeoutMs`?"),
        (b'{"target":"a","requestid":"r"}', "`requestid`: there is no such field; did you mean `requestId`?"),
        (
            b'{"target":"a","idempotenceKey":"k"}',
            "`idempotenceKey`: there is no such field; did you mean `idempotencyKey`?",
        ),
        (b'{"target":"a","arguments":{}}', "`arguments`: there is no such field; did you mean `parameters`?"),
        (b'{"target":"a","params":{}}', "`params`: there is no such field; did you mean `parameters`?"),
        (b'{"target":"a","args":{}}', "`args`: there is no such field; did you mean `parameters`?"),
        (b'{"target":"a","input":{}}', "`input`: there is no such field; did you mean `parameters`?"),
        (b'{"target":"a","new":1,"Args":{}}', "`Args`: there is no such field; did you mean `parameters`?"),
        (b'{"target":"a","Op":"cancel"}', "`Op`: there is no such field; did you mean `op`?"),
        (b'{"traget":"a"}', "`traget`: there is no such field; did you mean `target`?"),
        (b'{"new":1}', "object missing required field `target`"),
        (b'{"new":1,"target":7}', "`target`: expected `str`"),
        (
            b'{"target":"a",' + b",".join(b'"new%d":1' % each for each in range(65)) + b"}",
            "the message has 65 unknown fields",
        ),
        (
            b'{"target":"a","new":"' + b"x" * 65 * 1024 + b'"}',
            "the unknown fields have more than 65536 bytes",
        ),
        (
            b'{"target":"a","args":1,"parameters":{"a":"' + b"x" * 99_000 + b'"}}',
            "`args`: there is no such field; did you mean `parameters`?",
        ),
        (b'{"target":"a","idempotencyKey":""}', "`idempotencyKey` must be 1 to 255"),
        (b'{"target":"' + b"x" * 257 + b'"}', "`target`: expected `str` of length <= 256"),
    ],
)
def test_bad_operation_is_refused_with_the_name_of_its_field(body: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_operation(body)
    assert caught.value.message.startswith(sentence)


@pytest.mark.parametrize(("timeout", "sent_at"), [("1500", "7"), ("1500.0", "7.0"), ("1.5e3", "7e0")])
def test_whole_number_is_one_in_whatever_form(timeout: str, sent_at: str) -> None:
    operation = decode_operation(f'{{"target":"a","timeoutMs":{timeout},"sentAt":{sent_at}}}'.encode())
    assert operation == CommandRequest(target="a", timeout_ms=1500, sent_at=7)
    assert b"." not in msgspec.json.encode(operation)


@pytest.mark.parametrize("field", ["timeoutMs", "sentAt"])
@given(number=st.floats() | st.integers())
def test_any_other_number_is_refused(field: str, number: float) -> None:
    try:
        operation = decode_operation(json.dumps({"target": "a", field: number}).encode())
    except InvalidRequest:
        assert not (isinstance(number, int) or number.is_integer()) or not 0 < number <= messages.MAX_UNIX_MS
    else:
        assert isinstance(operation, CommandRequest)
        kept = operation.timeout_ms if field == "timeoutMs" else operation.sent_at
        assert (kept, type(kept)) == (number, int)


def test_large_command_of_a_newer_caller_is_decoded() -> None:
    parameters = b'{"a":"' + b"x" * 99_000 + b'"}'
    body = b'{"target":"a","new":1,"parameters":%b}' % parameters
    assert decode_operation(body) == CommandRequest(target="a", parameters=msgspec.Raw(parameters))


def test_probe_of_too_many_commands_is_refused() -> None:
    body = msgspec.json.encode({"op": "probe", "requestIds": ["r"] * (messages.MAX_PROBED + 1)})
    with pytest.raises(InvalidRequest, match="`requestIds`"):
        decode_operation(body)


@pytest.mark.parametrize(
    "operation", [CommandRequest(target="a"), CancelRequest(request_id="r"), ProbeRequest(request_ids=[])]
)
def test_operation_is_decoded_back(operation: messages.Operation) -> None:
    assert decode_operation(msgspec.json.encode(operation)) == operation


def test_success_has_a_value() -> None:
    response = messages.decode_response(
        b'{"requestId":"r","status":"success","result":[1, 2],"clientId":"c","durationMs":3}'
    )
    assert response.value() == msgspec.Raw(b"[1, 2]")


def test_success_without_a_result_is_null() -> None:
    assert CommandResponse(request_id="r", status="success", duration_ms=0).value() == msgspec.Raw(b"null")


def test_failure_raises_what_the_gateway_said() -> None:
    sent = messages.failure("r", CommandFailed("no such task", details={"code": "E1"}), "c", 12)
    received = messages.decode_response(msgspec.json.encode(sent))
    with pytest.raises(CommandFailed, match="no such task") as caught:
        received.value()
    assert caught.value.details == {"code": "E1"}
    assert (received.client_id, received.duration_ms) == ("c", 12)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"stream":"s","seq":1}', b"+OK", b"\xff"])
def test_answer_that_is_not_ours_is_internal(body: bytes) -> None:
    with pytest.raises(Internal):
        messages.decode_response(body)


def test_error_headers_are_one_printable_line() -> None:
    error = ErrorBody(ClientLost.code.value, "first\r\nNats-Msg-Id: 1\x00é" + "x" * 500, retryable=False)
    headers = messages.error_headers(error)
    assert headers["Nats-Service-Error-Code"] == "client_lost"
    assert headers["Nats-Service-Error"].startswith("first??Nats-Msg-Id: 1??xx")
    assert len(headers["Nats-Service-Error"]) == 200


@pytest.mark.parametrize(("instant", "text"), [(0, "1970-01-01T00:00:00.000Z"), (1.0015, "1970-01-01T00:00:01.001Z")])
def test_timestamp_is_rfc_3339_with_milliseconds(instant: float, text: str) -> None:
    assert messages.timestamp(instant) == text


def test_event_without_data_says_nothing_of_data() -> None:
    event = messages.EventMessage(event="e", client_id="c", user="u", app="", at="now")
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(event))
    assert plain == {"event": "e", "clientId": "c", "user": "u", "app": "", "at": "now"}
