"""The native dialect: loose frames in, the contract's frames out, and nothing but `InvalidFrame` for the rest."""

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contracts import Contracts
from gateway.dialects import native
from protocol import codec, frames
from protocol.errors import InvalidFrame

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
)
types = st.sampled_from(["capability", "metadata", "response", "progress", "event", "auth", "ping", "command", "x"])
FIELDS = "capabilities app metadata requestId status result error progress total message data event source id token"
fields = st.sampled_from(FIELDS.split())


@settings(max_examples=300)
@given(data=st.binary(max_size=200), text=st.booleans())
def test_arbitrary_bytes_raise_invalid_frame_only(data: bytes, text: bool) -> None:
    with contextlib.suppress(InvalidFrame):
        native.decode(data, text=text)


@settings(max_examples=150)
@given(kind=types, rest=st.dictionaries(fields, json_values, max_size=5))
def test_arbitrary_objects_are_frames_or_raise_invalid_frame_only(kind: str, rest: dict[str, object]) -> None:
    with contextlib.suppress(InvalidFrame):
        frame = native.decode(msgspec.json.encode({"type": kind, **rest}), text=True)
        if isinstance(frame, frames.CapabilityFrame):
            Contracts().read(frame.capabilities, "owner", 0)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid UTF-8"),
        (b'{"type":"event","event":"a","data":"\xff"}', "not valid UTF-8"),
        (b'{"type":"event","event":"\\ud800"}', "not valid JSON"),
        (b'{"type":"metadata","metadata":{"a":' + b"[" * 9999 + b"]" * 9999 + b"}}", "nested too deeply"),
        (b'{"type":"command"}', "invalid value 'command'"),
    ],
)
def test_sentence_says_what_is_wrong(data: bytes, sentence: str) -> None:
    with pytest.raises(InvalidFrame, match=sentence):
        native.decode(data, text=True)


def test_binary_frame_is_told_what_to_send() -> None:
    with pytest.raises(InvalidFrame, match="send JSON in text frames"):
        native.decode(b'{"type":"ping"}', text=False)


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
    frame = native.decode(data, text=True)
    if isinstance(frame, frames.CapabilityFrame):
        sent = msgspec.json.decode(data)["capabilities"]
        assert len(Contracts().read(frame.capabilities, "owner", 0).capabilities.offers) == len(sent)


def test_what_an_application_left_open_passes_to_the_byte() -> None:
    frame = native.decode(b'{"type":"response","requestId":"1","status":"success","result":{ "a" : 1.0 }}', text=True)
    assert isinstance(frame, frames.ResponseFrame)
    assert codec.raw_bytes(frame.result) == b'{ "a" : 1.0 }'


@pytest.mark.parametrize(
    ("data", "ident"),
    [
        (b'{"type":"what","id":"f1"}', "f1"),
        (b'{"type":"metadata","metadata":7,"id":"f1"}', "f1"),
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
    assert native.identify(data) == ident


def test_frames_to_applications_are_one_json_object() -> None:
    assert native.encode(frames.ConnectionFrame("c1", "1")) == (
        b'{"type":"connection","clientId":"c1","protocolVersion":"1"}'
    )
