"""Frames of the native dialect."""

from typing import Any

import msgspec
import pytest

from protocol import codec, frames
from protocol.errors import InvalidFrame

_decoder: msgspec.json.Decoder[frames.ClientFrame] = msgspec.json.Decoder(frames.ClientFrame)


def decode(value: Any) -> frames.ClientFrame:
    return frames.check_frame(codec.decode(_decoder, msgspec.json.encode(value), InvalidFrame))


def test_frames_of_applications_are_understood() -> None:
    assert isinstance(decode({"type": "capability", "capabilities": ["add"]}), frames.CapabilityFrame)
    answer = decode({"type": "response", "requestId": "r1", "status": "success", "result": [1]})
    assert isinstance(answer, frames.ResponseFrame)
    assert codec.raw_bytes(answer.result) == b"[1]"
    event = decode({"type": "event", "event": "done", "source": "list", "data": None})
    assert isinstance(event, frames.EventFrame)
    assert event.data == msgspec.Raw(b"null")


def test_unknown_fields_are_ignored() -> None:
    assert decode({"type": "ping", "of": ["tomorrow"]}) == frames.PingFrame()


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (None, frames.ClientFault()),
        ("no such task", frames.ClientFault("no such task")),
        ({"message": "no such task", "code": 7}, frames.ClientFault("no such task", 7)),
        ({"code": "E_TASK", "details": [1]}, frames.ClientFault(code="E_TASK", details=[1])),
    ],
)
def test_error_of_an_application_is_read_in_every_form(error: Any, fault: frames.ClientFault) -> None:
    answer = decode({"type": "response", "requestId": "r1", "status": "error", "error": error})
    assert isinstance(answer, frames.ResponseFrame)
    assert frames.fault_of(answer) == fault


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        ({"type": "sing"}, "`type`: invalid value 'sing'"),
        ({"type": 7}, "`type`: expected `str`"),
        ({}, "object missing required field `type`"),
        ([], "expected `object`, got `array`"),
        ({"type": "capability"}, "object missing required field `capabilities`"),
        ({"type": "capability", "capabilities": "add"}, "`capabilities`: expected `array`, got `str`"),
        ({"type": "capability", "capabilities": [], "app": "todo"}, "`app`: expected `object | null`, got `str`"),
        ({"type": "metadata", "metadata": [1]}, "`metadata`: expected `object`, got `array`"),
        ({"type": "progress", "requestId": "r1"}, "object missing required field `progress`"),
        ({"type": "progress", "requestId": "", "progress": 1}, "`requestId` must be 1 to 128"),
        ({"type": "event", "event": ""}, "`event`: expected `str` of length >= 1"),
        ({"type": "event", "event": "x", "id": "a b"}, "`id` must be 1 to 128 printable ASCII characters"),
        ({"type": "event", "event": "x", "id": ""}, "`id` must be 1 to 128 printable ASCII characters"),
        ({"type": "auth", "token": "t", "id": "x" * 129}, "`id` must be 1 to 128 printable ASCII characters"),
        ({"type": "response", "requestId": "\n", "status": "success"}, "`requestId` must be 1 to 128 printable"),
        ({"type": "response", "requestId": "r", "status": 1}, "`status`: expected `str`, got `int`"),
        ({"type": "progress", "requestId": "r"}, "object missing required field `progress`"),
        ({"type": "progress", "requestId": "é", "progress": 1}, "`requestId` must be 1 to 128 printable"),
    ],
)
def test_bad_frame_is_refused_with_the_name_of_its_field(frame: Any, sentence: str) -> None:
    with pytest.raises(InvalidFrame) as caught:
        decode(frame)
    assert caught.value.message.startswith(sentence)


def test_deep_nesting_is_refused_where_it_would_be_stored_or_encoded_again() -> None:
    deep: Any = 1
    for _ in range(65):
        deep = {"a": deep}
    for frame in (
        {"type": "metadata", "metadata": deep},
        {"type": "capability", "capabilities": [], "metadata": deep},
        {"type": "response", "requestId": "r", "status": "error", "error": {"details": deep}},
    ):
        with pytest.raises(InvalidFrame, match="nested more than 64 levels deep"):
            decode(frame)


BEYOND = {"1e400": "1e400", "-1e400": "-1e400", "digits": "9" * 5000, "after much": '["' + "x" * 2000 + '",1E+400]'}


@pytest.mark.parametrize("number", BEYOND.values(), ids=BEYOND.keys())
@pytest.mark.parametrize(
    ("frame", "field"),
    [
        ('{"type":"response","requestId":"r","status":"success","result":{"a":%s}}', "`result`"),
        ('{"type":"event","event":"e","data":[%s]}', "`data`"),
        ('{"type":"progress","requestId":"r","progress":1,"data":%s}', "`data`"),
        ('{"type":"response","requestId":"r","status":"error","error":{"details":%s}}', ""),
        ('{"type":"metadata","metadata":{"a":%s}}', ""),
    ],
)
def test_number_that_other_languages_cannot_read_is_refused(frame: str, field: str, number: str) -> None:
    with pytest.raises(InvalidFrame, match=f"{field}.*out of range"):
        frames.check_frame(codec.decode(_decoder, (frame % number).encode(), InvalidFrame))


def test_frames_to_clients_carry_the_names_of_the_contract() -> None:
    command = frames.CommandFrame("r", "add", None, msgspec.Raw(b"{}"), 10, frames.AgentIdentity("agent-1"))
    assert msgspec.json.decode(msgspec.json.encode(command)) == {
        "type": "command",
        "requestId": "r",
        "target": "add",
        "action": None,
        "parameters": {},
        "timeoutMs": 10,
        "agent": {"id": "agent-1"},
    }
    assert msgspec.json.encode(frames.PongFrame()) == b'{"type":"pong"}'
    assert msgspec.json.encode(frames.ErrorFrame("c", "m")) == b'{"type":"error","code":"c","message":"m"}'
