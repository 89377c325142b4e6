"""The native dialect: loose frames in, the contract's frames out, and nothing but `InvalidFrame` for the rest."""

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.played.sessions import OWNER

from gateway.capabilities.contracts import Contracts
from gateway.dialects.dialect import Wish
from gateway.dialects.native import NATIVE
from protocol import codec, frames
from protocol.errors import InvalidFrame

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
)


def decode(data: bytes, *, text: bool) -> frames.ClientFrame:
    (frame,) = NATIVE.make().decode(data, text=text)
    assert not isinstance(frame, Wish)
    return frame


types = st.sampled_from(["capability", "metadata", "response", "progress", "event", "auth", "ping", "command", "x"])
FIELDS = "capabilities app metadata requestId status result error progress total message data event source id token"
fields = st.sampled_from(FIELDS.split())


@settings(max_examples=300)
@given(data=st.binary(max_size=200), text=st.booleans())
def test_arbitrary_bytes_raise_invalid_frame_only(data: bytes, text: bool) -> None:
    with contextlib.suppress(InvalidFrame):
        decode(data, text=text)


@settings(max_examples=150)
@given(kind=types, rest=st.dictionaries(fields, json_values, max_size=5))
def test_arbitrary_objects_are_frames_or_raise_invalid_frame_only(kind: str, rest: dict[str, object]) -> None:
    with contextlib.suppress(InvalidFrame):
        frame = decode(msgspec.json.encode({"type": kind, **rest}), text=True)
        if isinstance(frame, frames.CapabilityFrame):
            Contracts().read(frame.capabilities, OWNER, 0)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid UTF-8"),
        (b'{"type":"event","event":"a","data":"\xff"}', "not valid UTF-8"),
        (b'{"type":"metadata","metadata":{"a":' + b"[" * 9999 + b"]" * 9999 + b"}}", "nested too deeply"),
        (b'{"type":"command"}', "invalid value 'command'"),
    ],
)
def test_sentence_says_what_is_wrong(data: bytes, sentence: str) -> None:
    with pytest.raises(InvalidFrame, match=sentence):
        decode(data, text=True)


def test_binary_frame_is_told_what_to_send() -> None:
    with pytest.raises(InvalidFrame, match="send JSON in text frames"):
        decode(b'{"type":"ping"}', text=False)


# What applications of simple self-hosted servers send, and looser forms of the same.
FUNCTION = b'{"name":"addTask","parameters":{"type":"object","properties":{"title":{"type":"string"}}}}'
LOOSE = b'{"id":"list","actions":["clear",{"name":"show"}]}'
COMPONENT = b'{"type":"component","id":"list","properties":{"count":1},"actions":{"clear":null,"show":{}},"since":2}'
LOOSE_FRAMES = [
    b'{"type":"capability","capabilities":["addTask","removeTask"]}',
    b'{"type":"capability","capabilities":[]}',
    b'{"type":"capability","capabilities":[%s,%s]}' % (FUNCTION, LOOSE),
    b'{"type":"capability","capabilities":[%s]}' % COMPONENT,
    b'{"type":"response","requestId":"1","status":"success","result":{"sum":3}}',
    b'{"type":"response","requestId":"1","status":"success"}',
    b'{"type":"response","requestId":"1","status":"error","error":{"message":"no"}}',
    b'{"type":"response","requestId":"1","status":"error","error":"no"}',
    b'{"type":"event","event":"task.added","source":"list","data":{"id":1}}',
    b' \n{ "type" : "event", "event" : "x", "timestamp" : 1 }\n',
]


@pytest.mark.parametrize("data", LOOSE_FRAMES)
def test_loose_frames_are_accepted(data: bytes) -> None:
    frame = decode(data, text=True)
    if isinstance(frame, frames.CapabilityFrame):
        sent = msgspec.json.decode(data)["capabilities"]
        assert len(Contracts().read(frame.capabilities, OWNER, 0).capabilities.offers) == len(sent)


def test_what_an_application_left_open_passes_to_the_byte() -> None:
    frame = decode(b'{"type":"response","requestId":"1","status":"success","result":{ "a" : 1.0 }}', text=True)
    assert isinstance(frame, frames.ResponseFrame)
    assert codec.raw_bytes(frame.result) == b'{ "a" : 1.0 }'


@pytest.mark.parametrize(
    ("data", "ident"),
    [
        (b'{"type":"what","id":"f1"}', "f1"),
        (b'{"type":"metadata","metadata":7,"id":"f1"}', "f1"),
        (b'{"type":"event","id":"f1","data":NaN}', "f1"),
        (b'{"type":"what"}', None),
        (b'{"type":"what","id":7}', None),
        (b'{"type":"what","id":""}', None),
        (b'{"type":"what","id":"a b"}', None),
        (b'{"type":"what","id":"' + b"x" * 129 + b'"}', None),
        (b'["id"]', None),
        (b"\xff", None),
        (b"[" * 99999, None),
    ],
)
def test_id_of_a_refused_frame_is_found_where_it_is_a_good_one(data: bytes, ident: str | None) -> None:
    assert NATIVE.make().identify(data).id == ident


DEEP = b"[" * 5000 + b"]" * 5000
LONG = b'"' + b"x" * 5000 + b'"'
UNREADABLE_ANSWERS = {
    "a misspelt id": b'{"type":"response","request_id":"r1","status":"success","result":1}',
    "NaN": b'{"type":"response","requestId":"r1","status":"success","result":NaN}',
    "infinity": b'{"type":"response","requestId":"r1","status":"success","result":[-Infinity]}',
    "undefined": b'{"type":"response","requestId":"r1","status":"success","result":undefined}',
    "a comma too many": b'{"type":"response","requestId":"r1","status":"success","result":[1,]}',
    "single quotes": b"{'type':'response'}".replace(b"'", b'"')[:-1] + b""","requestId":"r1","result":'a'}""",
    "quotes as Python writes them": b"{'type': 'response', 'requestId': 'r1', 'status': 'success', 'result': None}",
    "a list of one": b'[{"type":"response","requestId":"r1","status":"success"}]',
    "cut off": b'{"type":"response","requestId":"r1","status":"success","result":{"a":',
    "nested deeply": b'{"type":"response","requestId":"r1","status":"success","result":%b}' % DEEP,
    "the result first": b'{"result":%b,"status":"success","requestId":"r1","type":"response"}' % DEEP,
    "a long result that names another": b'{"type":"response","result":{"requestId":"r2","x":[%b,NaN]},"requestId":"r1"}'
    % LONG,
    "no UTF-8": b'{"type":"response","requestId":"r1","status":"success","result":"\xff"}',
    "half a surrogate pair": b'{"type":"response","requestId":"r1","status":"success","result":"\xed\xa0\x80"}',
    "1e400": b'{"type":"response","requestId":"r1","status":"success","result":{"a":1e400}}',
    "-1e400 after a long text": b'{"type":"response","requestId":"r1","status":"success","result":[%b,-1E+400]}' % LONG,
    "5,000 digits": b'{"type":"response","requestId":"r1","status":"success","result":%b}' % (b"9" * 5000),
    "no status": b'{"type":"response","requestId":"r1","result":1}',
    "status null": b'{"type":"response","requestId":"r1","status":null}',
    "status true": b'{"type":"response","requestId":"r1","status":true}',
    "status 200": b'{"type":"response","requestId":"r1","status":200}',
    "error is a list": b'{"type":"response","requestId":"r1","status":"error","error":["no"]}',
    "error is a number": b'{"type":"response","requestId":"r1","status":"error","error":7}',
    "error is false": b'{"type":"response","requestId":"r1","status":"success","error":false}',
    "code 1.5": b'{"type":"response","requestId":"r1","status":"error","error":{"code":1.5}}',
    "code is a list": b'{"type":"response","requestId":"r1","status":"error","error":{"code":["a"]}}',
    "message is an object": b'{"type":"response","requestId":"r1","status":"error","error":{"message":{"a":1}}}',
    "message null": b'{"type":"response","requestId":"r1","status":"error","error":{"message":null}}',
    "details nested deeply": b'{"type":"response","requestId":"r1","status":"error","error":{"details":%b}}'
    % (b"[" * 70 + b"]" * 70),
}


@pytest.mark.parametrize("data", UNREADABLE_ANSWERS.values(), ids=UNREADABLE_ANSWERS.keys())
def test_unreadable_answer_names_its_command(data: bytes) -> None:
    with pytest.raises(InvalidFrame):
        decode(data, text=True)
    assert NATIVE.make().identify(data).answers == ("r1",)


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"event","requestId":"r1","data":NaN}',
        b'{"requestId":"r1","result":NaN}',
        b'{"type":"response","status":"success","result":NaN}',
        b'{"type":"response","result":{"requestId":"r1"},"x":NaN}',
        b'{"type":"response","requestId":"a b","result":NaN}',
        b'{"type":"response","requestId":"' + b"r" * 129 + b'","result":NaN}',
        b'{"type":"response","requestId":7,"status":1}',
        b'{"type":["response"],"requestId":"r1"}',
        b"",
    ],
)
def test_what_is_no_answer_to_a_command_names_none(data: bytes) -> None:
    assert NATIVE.make().identify(data).answers == ()


@pytest.mark.parametrize("half", [b"\\ud83d", b"\\uDE00", b"\\ud83d\\ud83d"])
def test_half_a_surrogate_pair_is_the_replacement_character(half: bytes) -> None:
    """A text that was cut in the middle of an emoji, as `JSON.stringify` writes it."""
    data = b'{"type":"response","requestId":"r1","status":"success","result":"a%b\\ud83d\\ude00"}' % half
    frame = decode(data, text=True)
    assert isinstance(frame, frames.ResponseFrame)
    assert codec.decode_value(frame.result) == "a" + "\ufffd" * (len(half) // 6) + "\U0001f600"


def test_frames_to_applications_are_one_json_object() -> None:
    told = frames.ConnectionLimits(1024, 25.0)
    assert NATIVE.make().encode(frames.ConnectionFrame("c1", "1", told)) == (
        b'{"type":"connection","clientId":"c1","protocolVersion":"1",'
        b'"limits":{"maxMessageBytes":1024,"pingIntervalSeconds":25.0}}'
    )
