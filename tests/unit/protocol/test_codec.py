"""Strangers' bytes: every malformed input is one of our own errors, with a sentence that names the field."""

import json
from collections.abc import Callable
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol import codec, discovery, frames, messages, records, reports
from protocol.errors import BridgeError, InvalidFrame, InvalidRequest

_frame_decoder: msgspec.json.Decoder[frames.ClientFrame] = msgspec.json.Decoder(frames.ClientFrame)
_report_decoder = msgspec.json.Decoder(reports.Report)
_query_decoder = msgspec.json.Decoder(discovery.Query)
_any_decoder = msgspec.json.Decoder()


def decode_frame(data: bytes) -> frames.ClientFrame:
    return frames.check_frame(codec.decode(_frame_decoder, data, InvalidFrame))


def decode_capabilities(data: bytes) -> records.CapabilityList:
    return records.read_capabilities(msgspec.Raw(data))


DECODERS: list[Callable[[bytes], Any]] = [
    decode_frame,
    decode_capabilities,
    codec.decode_value,
    messages.decode_operation,
    messages.decode_response,
    messages.decode_probe_response,
    lambda data: codec.decode(_report_decoder, data),
    lambda data: codec.decode(_query_decoder, data),
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
STRUCTS = [*get_args(frames.ClientFrame), *get_args(messages.Operation), messages.CommandResponse, reports.Report]
field_names = st.sampled_from(
    ["type", "op", "name", "actions", *(name for struct in STRUCTS for name in struct.__struct_encode_fields__)]
)
tags = st.sampled_from([*(struct.__struct_config__.tag for struct in STRUCTS[:-2]), "function", "component"])
objects = st.dictionaries(field_names, json_values | tags | st.lists(tags, max_size=3), max_size=8)


@given(data=st.binary(max_size=200))
@example(data=b"")
@example(data=b"\xff\xfe")
@example(data=b"[" * 10_000 + b"]" * 10_000)
@example(data=b'{"type":"metadata","metadata":' + b'{"a":' * 5000 + b"1" + b"}" * 5001)
@example(data=b'{"type":"capability","capabilities":[' + b"[" * 990 + b"]" * 990 + b"]}")
@example(data=b'{"target":"a","timeoutMs":' + b"9" * 5000 + b"}")
@example(data=b'{"target":"a","parameters":{"a":NaN}}')
@example(data=b'{"target":"\\ud800"}')
@example(data=b'[{"name":"f","x":1e999}]')
def test_arbitrary_bytes_raise_nothing_but_our_own_error(data: bytes) -> None:
    for decoder in DECODERS:
        _only_our_error(decoder, data)


@given(value=objects | st.lists(objects, max_size=3))
def test_arbitrary_json_raises_nothing_but_our_own_error(value: Any) -> None:
    data = msgspec.json.encode(value)
    for decoder in DECODERS:
        _only_our_error(decoder, data)


@given(value=objects, position=st.integers(0, 500), byte=st.integers(0, 255))
def test_one_wrong_byte_raises_nothing_but_our_own_error(value: Any, position: int, byte: int) -> None:
    data = bytearray(msgspec.json.encode(value))
    data[position % len(data)] = byte
    for decoder in DECODERS:
        _only_our_error(decoder, bytes(data))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "the message is not valid JSON"),
        (b"{", "the message is not valid JSON"),
        (b'{"target":"a"}x', "the message is not valid JSON"),
        (b'{"target":"a","parameters":{"a":NaN}}', "the message is not valid JSON"),
        (b'{"target":"a","parameters":{"a":"\\q"}}', "the message is not valid JSON"),
        (b'{"target":"a","parameters":{"a":"\xff"}}', "the message is not valid UTF-8"),
        (b'{"target":"\xc3"}', "the message is not valid UTF-8"),
        (b'{"target":"a","parameters":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "the message is nested too deeply"),
        (b'{"target":"a","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "the message is nested too deeply"),
        (b"[]", "expected `object`, got `array`"),
        (b"{}", "object missing required field `target`"),
        (b'{"target":null}', "`target`: expected `str`, got `null`"),
        (b'{"target":""}', "`target`: expected `str` of length >= 1"),
        (b'{"target":"a","timeoutMs":"soon"}', "`timeoutMs`: expected `int | float | null`, got `str`"),
        (b'{"target":"a","timeoutMs":' + b"9" * 5000 + b"}", "`timeoutMs`: integer value out of range"),
    ],
)
def test_sentence_says_what_is_wrong_and_where(data: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        messages.decode_operation(data)
    assert caught.value.message == sentence


def test_sentence_does_not_echo_a_long_value() -> None:
    with pytest.raises(InvalidFrame) as caught:
        decode_frame(b'{"type":"' + b"x" * 500_000 + b'"}')
    assert caught.value.message.startswith("`type`: invalid value 'xxx")
    assert len(caught.value.message) < 400


def test_raw_value_is_passed_on_to_the_byte() -> None:
    command = messages.decode_operation(b'{"target":"a","parameters":  {"b" : 1.50, "b":[ ]} }')
    assert isinstance(command, messages.CommandRequest)
    assert codec.raw_bytes(command.parameters) == b'{"b" : 1.50, "b":[ ]}'
    assert codec.is_object(command.parameters)


@pytest.mark.parametrize("depth", [1, 63, 64])
def test_value_nested_up_to_the_bound_is_accepted(depth: int) -> None:
    codec.require_shallow(codec.decode_value(b"[" * depth + b"]" * depth), "`x`")


@pytest.mark.parametrize("text", [b"[" * 65 + b"]" * 65, b'{"a":' * 65 + b"1" + b"}" * 65])
def test_value_nested_beyond_the_bound_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="`x`: nested more than 64 levels deep"):
        codec.require_shallow(codec.decode_value(text), "`x`")


paddings = st.sampled_from(["", "x" * 2000, '\\\\"1e999\\"' * 500, "\\\\" + "x" * 3000, "1e999" * 500, "9" * 5000])


@given(value=json_values, padding=paddings)
def test_usual_numbers_are_accepted_in_small_and_large_values(value: Any, padding: str) -> None:
    codec.require_usual_numbers(msgspec.Raw(json.dumps([padding, value, 1e308, 10**400, 1e-400]).encode()), "`x`")


@given(
    before=json_values,
    padding=paddings,
    number=st.sampled_from(["1e309", "-2.5E+400", "9" * 250 + "e99", "-" + "9" * 211 + ".5E+99"]),
)
def test_number_that_is_out_of_range_is_found_wherever_it_stands(before: Any, padding: str, number: str) -> None:
    text = f'{{"a": {json.dumps([before, padding])}, "b": [{number}]}}'
    with pytest.raises(InvalidRequest, match="`x`: a number is out of range"):
        codec.require_usual_numbers(msgspec.Raw(text.encode()), "`x`")


@given(text=st.text(st.sampled_from('\\u\ud83d\ude00aé"\U0001f600'), max_size=12))
def test_half_a_surrogate_pair_is_read_as_the_replacement_character(text: str) -> None:
    """What `JSON.stringify` writes of any text of UTF-16 halves is read; whole pairs stay."""
    halves = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    expected = json.loads(json.dumps(text)).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert codec.decode(_any_decoder, json.dumps(text).encode()) in (halves.removeprefix("\ufeff"), expected)


def _only_our_error(decoder: Callable[[bytes], Any], data: bytes) -> None:
    try:
        decoder(data)
    except BridgeError as error:
        msgspec.json.encode(error.body())
