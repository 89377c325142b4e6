"""What is told of a message that cannot be decoded, and that it takes no time whatever stands in it."""

import time

import pytest

from gateway.dialects.unreadable import fields_of

HEAD = b'{"type":"response","requestId":"r1",'


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (HEAD + b'"result":{"id":"inner","deep":[{"id":"deeper"},[]]', {"type": "response", "requestId": "r1"}),
        (b'{"result":[{"id":"inner"},{}],"type":"response" , "id" : "m1"', {"type": "response", "id": "m1"}),
        (HEAD + b'"result":"' + b'\\"' * 1500, {"type": "response", "requestId": "r1"}),
        (b'{"type":"response","requestId":"r1', {"type": "response"}),
        (b'{"type":"response","requestId":"r1\\', {"type": "response"}),
        (b'{"type":"response","requestId":"r1\\"', {"type": "response"}),
        (b"[" * 5000, {}),
        (b'[{"type":"response","requestId":"r1","result":1}]', {"type": "response", "requestId": "r1"}),
        (b"{'type': 'response', 'requestId': 'r1', 'result': None}", {"type": "response", "requestId": "r1"}),
        (b'{"a":"' + b"x" * 5000 + b'","requestId":"r2","type":"response"', {"type": "response", "requestId": "r2"}),
    ],
    ids=lambda data: str(data)[:40],
)
def test_fields_of_the_outermost_object_are_found_if_they_are_whole(data: bytes, expected: dict[str, str]) -> None:
    assert fields_of(data) == expected


@pytest.mark.parametrize(
    "piece",
    [b'\\"', b'"', b"'", b"[", b"[]", b"{ }, ", b'"":', b'{"requestId":"', b'"type":"a_'],
    ids=lambda piece: str(piece),
)
def test_no_input_takes_long(piece: bytes) -> None:
    """In CPU time, of which other processes take none: far below a millisecond, and 50 before for escaped quotes."""
    data = b'{"type":"' + piece * 3000

    def seconds() -> float:
        begun = time.process_time()
        fields_of(data)
        return time.process_time() - begun

    assert min(seconds() for _ in range(5)) < 0.01
