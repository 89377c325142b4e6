"""Messages on command subjects."""

from typing import Any

import msgspec
import pytest

from protocol import messages
from protocol.errors import ClientLost, CommandFailed, ErrorBody, Internal, InvalidRequest
from protocol.messages import CancelRequest, CommandRequest, CommandResponse, ProbeRequest, decode_operation


@pytest.mark.parametrize(
    ("body", "operation"),
    [
        (b'{"target":"add"}', CommandRequest(target="add")),
        (b'{"op":"call","target":"add","new":1}', CommandRequest(target="add")),
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
        (b'{"target":"a","sentAt":-1}', "`sentAt`: expected `int` >= 0"),
        (b'{"target":"a","sentAt":' + b"9" * 400 + b"}", "`sentAt`: expected `int` <= 253402300799999"),
        (b'{"target":"a","idempotencyKey":""}', "`idempotencyKey` must be 1 to 255"),
        (b'{"target":"' + b"x" * 257 + b'"}', "`target`: expected `str` of length <= 256"),
    ],
)
def test_bad_operation_is_refused_with_the_name_of_its_field(body: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_operation(body)
    assert caught.value.message.startswith(sentence)


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
